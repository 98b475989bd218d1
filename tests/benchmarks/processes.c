/* The processes of a host that runs containers: processes NUMBER [FILE]
 *
 * So many that wait. Half of them are in containers, 25 in each, which have mount and network namespaces of their own.
 * Each has twelve files open, and sixteen mappings beside those of its program and its libraries; the last one has
 * FILE open as well. A line is printed when all are there. They end when the standard input does.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { IN_A_CONTAINER = 25, MAPPED = 16 };

static void failed(const char *what)
{
	perror(what);
	exit(1);
}

static void open_files(void)
{
	int fds[2], null = open("/dev/null", O_RDWR);

	for (int fd = 0; fd < 3; fd++)
		if (dup2(null, fd) < 0)
			failed("/dev/null");
	close(null);
	if (pipe(fds) || socketpair(AF_UNIX, SOCK_STREAM, 0, fds) || eventfd(0, 0) < 0 ||
	    socket(AF_INET, SOCK_DGRAM, 0) < 0)
		failed("open");
	for (int number = 0; number < 3; number++)
		if (open("/proc/self/exe", O_RDONLY) < 0)
			failed("/proc/self/exe");
}

/* By turns with and without access, so that the kernel makes one of no two. */
static void map_memory(void)
{
	int file = open("/proc/self/exe", O_RDONLY);

	for (int place = 0; place < MAPPED; place++)
		if (mmap(NULL, 4096, place % 2 ? PROT_READ : PROT_NONE, MAP_PRIVATE, file, 0) == MAP_FAILED)
			failed("mmap");
	close(file);
}

int main(int argc, char **argv)
{
	int number = argc > 1 ? atoi(argv[1]) : 0, outside = number - number / 2;
	pid_t parent = getpid();
	char byte;

	for (int one = 0; one < number; one++) {
		pid_t child;

		/* A further container: this process enters it, and the next ones begin there. */
		if (one >= outside && (one - outside) % IN_A_CONTAINER == 0 && unshare(CLONE_NEWNS | CLONE_NEWNET))
			failed("unshare");
		child = fork();
		if (child < 0)
			failed("fork");
		if (child == 0) {
			if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent)
				_exit(1);
			if (one == number - 1 && argc > 2 && open(argv[2], O_RDWR) < 0)
				failed(argv[2]);
			open_files();
			map_memory();
			for (;;)
				pause();
		}
	}
	puts("ready");
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
	return 0;
}
