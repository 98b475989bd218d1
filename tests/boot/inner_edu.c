/*
 * The first and only process of a virtual machine that has been given an edu device: has the device copy a text
 * from one place of memory to another by DMA, says what has arrived, and turns the machine off.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <time.h>
#include <unistd.h>

#define DEVICES "/sys/bus/pci/devices"
#define TEXT "by DMA of the edu device"

static volatile uint8_t *registers;

static void write32(unsigned int offset, uint32_t value)
{
	*(volatile uint32_t *)(registers + offset) = value;
}

static uint32_t read32(unsigned int offset)
{
	return *(volatile uint32_t *)(registers + offset);
}

/* A file of a device's folder, open; -1 where there is none. */
static int attribute(const char *device, const char *name, int flags)
{
	char path[512];

	snprintf(path, sizeof(path), DEVICES "/%s/%s", device, name);
	return open(path, flags);
}

static int is_edu(const char *device)
{
	uint32_t ids = 0;
	int fd = attribute(device, "config", O_RDONLY);

	if (fd < 0)
		return 0;
	if (pread(fd, &ids, sizeof(ids), 0) != sizeof(ids))
		ids = 0;
	close(fd);
	return ids == 0x11e81234;
}

/* Maps the registers of the edu device, with memory decode and bus mastering on; the device's name, or NULL. */
static const char *find_edu(void)
{
	static char name[256];
	DIR *folder = opendir(DEVICES);
	struct dirent *entry;
	uint16_t command;
	int fd;

	while (folder && (entry = readdir(folder)))
		if (is_edu(entry->d_name)) {
			snprintf(name, sizeof(name), "%s", entry->d_name);
			fd = attribute(name, "config", O_RDWR);
			pread(fd, &command, sizeof(command), 4);
			command |= 6;
			pwrite(fd, &command, sizeof(command), 4);
			fd = attribute(name, "resource0", O_RDWR | O_SYNC);
			registers = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
			return registers == MAP_FAILED ? NULL : name;
		}
	return NULL;
}

static uint64_t physical(const void *address)
{
	uint64_t entry = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	pread(fd, &entry, sizeof(entry), (uintptr_t)address / 4096 * sizeof(entry));
	close(fd);
	return (entry & ((1ULL << 55) - 1)) * 4096 + (uintptr_t)address % 4096;
}

/* One transfer; to or from the device's own buffer at 0x40000. */
static void transfer(uint64_t from, uint64_t to, uint32_t length, uint32_t command)
{
	struct timespec moment = {0, 10000000};

	write32(0x80, from);
	write32(0x88, to);
	write32(0x90, length);
	write32(0x98, command | 1);
	while (read32(0x98) & 1)
		nanosleep(&moment, NULL);
}

int main(void)
{
	const char *name;
	char *memory;

	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | MAP_LOCKED, -1, 0);
	name = find_edu();
	if (!name || memory == MAP_FAILED) {
		printf("inner: there is no edu device\n");
	} else {
		strcpy(memory, TEXT);
		transfer(physical(memory), 0x40000, sizeof(TEXT), 0);
		transfer(0x40000, physical(memory + 2048), sizeof(TEXT), 2);
		printf("inner: %s, id %08x, arrived: %s\n", name, read32(0), memory + 2048);
	}
	fflush(stdout);
	sync();
	reboot(RB_POWER_OFF);
	return 0;
}
