#!/bin/bash
# A virtual machine whose memory is the second 2 MiB of a file.
dax_state --path "$NVH_MOUNT/a" --create 8M >/dev/null || exit
exec kvm_guest --source "file:$NVH_MOUNT/a" --offset 2M
