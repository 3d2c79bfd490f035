/* Buffers of the process (V4L2_MEMORY_USERPTR) queued to vivid, the kernel's virtual video driver. */
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "nvh.h"
#include "pinner.h"

#define NODES 16

static int video = -1;
static enum v4l2_buf_type type;

static int ask_for_buffers(unsigned int count)
{
	struct v4l2_requestbuffers request = {.count = count, .type = type, .memory = V4L2_MEMORY_USERPTR};

	return ioctl(video, VIDIOC_REQBUFS, &request) < 0 ? errno : 0;
}

static bool is_vivid(const char *path, unsigned int wanted)
{
	struct v4l2_capability found;

	video = open(path, O_RDWR | O_CLOEXEC);
	if (video < 0)
		return false;
	if (ioctl(video, VIDIOC_QUERYCAP, &found) == 0 && strcmp((const char *)found.driver, "vivid") == 0 &&
	    (found.device_caps & wanted))
		return true;
	close(video);
	return false;
}

/* A camera writes to the buffers, a display reads them. */
static bool open_vivid(const char *device, bool write)
{
	unsigned int wanted = write ? V4L2_CAP_VIDEO_CAPTURE : V4L2_CAP_VIDEO_OUTPUT;
	char path[32];
	bool found = device && is_vivid(device, wanted);
	int err;

	for (int node = 0; !found && !device && node < NODES; node++) {
		snprintf(path, sizeof(path), "/dev/video%d", node);
		found = is_vivid(path, wanted);
	}
	if (!found)
		return pinner_missing(write ? "vivid camera" : "vivid display", ENODEV);
	type = write ? V4L2_BUF_TYPE_VIDEO_CAPTURE : V4L2_BUF_TYPE_VIDEO_OUTPUT;
	err = ask_for_buffers(1);
	if (err)
		nvh_bail("VIDIOC_REQBUFS of one USERPTR buffer: %s", nvh_errname(err));
	return true;
}

static int pin(void *addr, size_t size, bool write)
{
	struct v4l2_format format = {.type = type};
	struct v4l2_buffer buffer = {
		.type = type,
		.memory = V4L2_MEMORY_USERPTR,
		.field = V4L2_FIELD_NONE,
		.m.userptr = (uintptr_t)addr,
		.length = (uint32_t)size,
	};

	if (ioctl(video, VIDIOC_G_FMT, &format) < 0)
		nvh_bail("VIDIOC_G_FMT: %s", nvh_errname(errno));
	if (size < format.fmt.pix.sizeimage)
		nvh_bail("a picture needs %u bytes", format.fmt.pix.sizeimage);
	if (!write)
		buffer.bytesused = format.fmt.pix.sizeimage;
	return ioctl(video, VIDIOC_QBUF, &buffer) < 0 ? errno : 0;
}

static int unpin(void)
{
	return ask_for_buffers(0);
}

const struct pinner vivid_pinner = {.name = "vivid", .reads = true, .open = open_vivid, .pin = pin, .unpin = unpin};
