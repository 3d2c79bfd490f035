#!/bin/bash
# Two pages are pinned by vmsplice(2) into a pipe; the file is truncated under them.
exec layout --file "$NVH_MOUNT/a" --op truncate --pin-page 3,9
