#!/bin/bash
# The device's BAR, never touched: mapped for DMA and reached by the device; refused while it is off.
set -o pipefail
vfio_bar --device "$NVH_EDU" --touch none --memory off |
    sed '/^# facts /s/"\([a-z_]*\)":/"off_\1":/g' || exit
exec vfio_bar --device "$NVH_EDU" --touch none --dma-test
