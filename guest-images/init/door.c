/*
 * The guest's SSH port: accepts connections and hands each to a server of its own (dropbear -i).
 *
 * The server of the next connection is started ahead of it, up to the point where it has sent its
 * banner and waits for the client's; in a template that has been paid for every clone.  dropbear and
 * not OpenSSH, whose processes and libraries are twice the code for TCG to translate in each clone.
 *
 * dropbear draws from a pool that it fills when it starts, so the first session of all clones of a
 * template has one ephemeral key on the server's side.  The client's differ, and so do the sessions'
 * keys; who can read the template has the keys to log in.
 *
 * SIGHUP: start the next server now.  /run/nvh/warm is there while one waits.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define WARM "/run/nvh/warm"
#define HOST_KEY "/run/nvh/host_key"
/* Bytes that the client may send ahead; files are written to the guest through a session. */
#define WINDOW "1048576"

static int next_server = -1; /* our end of the waiting server's socket */
static volatile sig_atomic_t asked;
static sigset_t unblocked; /* SIGHUP comes only while we wait for a connection */

static void ask(int signal)
{
	(void)signal;
	asked = 1;
}

static _Noreturn void become_server(int fd)
{
	/* The harness's key is the only way in (-s), and leads to no other port (-j, -k). */
	char *const argv[] = { "/usr/sbin/dropbear", "-i", "-s", "-j", "-k", "-r", HOST_KEY,
			       "-W", WINDOW, NULL };
	int null = open("/dev/null", O_WRONLY);

	setsid();
	dup2(fd, STDIN_FILENO);
	dup2(fd, STDOUT_FILENO);
	dup2(null, STDERR_FILENO);
	signal(SIGCHLD, SIG_DFL);
	signal(SIGHUP, SIG_DFL);
	sigprocmask(SIG_SETMASK, &unblocked, NULL);
	execv(argv[0], argv);
	_exit(127);
}

static void forget_next(void)
{
	close(next_server);
	next_server = -1;
	unlink(WARM);
}

/* Whether the waiting server was killed, or has given up: dropbear waits 300 s for a login. */
static bool next_is_dead(void)
{
	struct pollfd end = { .fd = next_server, .events = POLLIN };

	return next_server >= 0 && poll(&end, 1, 0) == 1 && (end.revents & POLLHUP);
}

/* Start a server and wait until its banner can be read, which the client will do. */
static void start_next(void)
{
	int ends[2];

	if (next_is_dead())
		forget_next();
	if (next_server >= 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return;

	pid_t child = fork();

	if (child == 0)
		become_server(ends[1]);
	close(ends[1]);
	if (child < 0) {
		close(ends[0]);
		return;
	}
	next_server = ends[0];

	struct pollfd banner = { .fd = next_server, .events = POLLIN };

	if (poll(&banner, 1, 30 * 1000) == 1 && (banner.revents & (POLLIN | POLLHUP)) == POLLIN)
		close(open(WARM, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
}

static bool pass(int from, int to)
{
	char buffer[65536];
	ssize_t got = read(from, buffer, sizeof(buffer));

	if (got <= 0)
		return false;
	for (ssize_t done = 0; done < got;) {
		ssize_t put = write(to, buffer + done, (size_t)(got - done));

		if (put < 0 && errno != EINTR)
			return false;
		done += put > 0 ? put : 0;
	}
	return true;
}

/* Carry bytes both ways until either side is done. */
static _Noreturn void relay(int client, int server)
{
	struct pollfd ends[2] = { { .fd = client, .events = POLLIN }, { .fd = server, .events = POLLIN } };

	for (;;) {
		if (poll(ends, 2, -1) < 0 && errno != EINTR)
			_exit(1);
		if (ends[0].revents && !pass(client, server))
			shutdown(server, SHUT_WR), ends[0].fd = -1;
		if (ends[1].revents && !pass(server, client))
			_exit(0);
	}
}

static void serve(int client)
{
	const int on = 1;

	setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	start_next();
	if (next_server >= 0 && fork() == 0)
		relay(client, next_server);
	forget_next();
}

int main(void)
{
	const struct sockaddr_in any = { .sin_family = AF_INET, .sin_port = htons(22) };
	const struct sigaction action = { .sa_handler = ask };
	int door = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	const int on = 1;

	signal(SIGCHLD, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	sigset_t hangup;

	sigemptyset(&hangup);
	sigaddset(&hangup, SIGHUP);
	sigprocmask(SIG_BLOCK, &hangup, &unblocked);
	sigaction(SIGHUP, &action, NULL);
	setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (door < 0 || bind(door, (const struct sockaddr *)&any, sizeof(any)) < 0 ||
	    listen(door, 64) < 0) {
		perror("nvh-door");
		return 1;
	}
	start_next();
	for (;;) {
		struct pollfd waiting = { .fd = door, .events = POLLIN };

		if (ppoll(&waiting, 1, NULL, &unblocked) == 1) {
			int client = accept4(door, NULL, NULL, SOCK_CLOEXEC);

			if (client >= 0) {
				serve(client);
				close(client);
			}
		}
		if (asked) {
			asked = 0;
			start_next();
		}
	}
}
