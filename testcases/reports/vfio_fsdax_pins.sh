#!/bin/bash
# The file is refused, and can be truncated at once; device-dax is taken, and the device writes it.
set -o pipefail
vfio_map --device "$NVH_EDU" --source "file:$NVH_MOUNT/a" --touch write --truncate || exit
vfio_map --device "$NVH_EDU" --source "dax:$NVH_DEVDAX2M" --touch write --dma-test |
    sed '/^# facts /s/"\([a-z_]*\)":/"devdax_\1":/g'
