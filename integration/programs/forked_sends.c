/* Writes numbered words to a stream, while a timer's handler forks now and then: the child returns from the handler, and
 * ends once its own write has returned. A reader says how many words were not the next ones, and this how many children
 * there were, and of those how many wrote something, as they do if the handler has come before the write had begun.
 *
 *     forked_sends pair|pipe MILLISECONDS */

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WORDS = 8192 };
static unsigned long words[WORDS];
static volatile sig_atomic_t writes, forks;
static pid_t writer;
static int *wrote;

static void on_timer(int signal) {
    int kept = errno;
    if (writes && getpid() == writer && fork() > 0) forks++;
    errno = kept;
}

static int reader(int fd) {
    unsigned long next = 0, wrong = 0, count = 0;
    size_t have = 0;
    ssize_t len;
    while ((len = read(fd, (char *)words + have, sizeof words - have)) > 0) {
        have += len;
        size_t whole = have / sizeof *words;
        for (size_t i = 0; i < whole; i++, count++) {
            wrong += words[i] != next;
            next = words[i] + 1;
        }
        have -= whole * sizeof *words;
        memmove(words, words + whole, have);
    }
    printf("%d %lu ", count > 0, wrong);
    return 0;
}

static void write_all(int fd) {
    for (size_t done = 0; done < sizeof words;) {
        writes = 1;
        ssize_t len = write(fd, (char *)words + done, sizeof words - done);
        writes = 0;
        if (getpid() != writer) {
            if (len > 0) __atomic_fetch_add(wrote, 1, __ATOMIC_RELAXED);
            _exit(0);
        }
        if (len < 0 && errno != EINTR) exit(3);
        if (len > 0) done += len;
    }
}

static long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int main(int argc, char **argv) {
    int ends[2], pipes[2];
    if (argc != 3) return 2;
    if (!strcmp(argv[1], "pipe")) {
        if (pipe(pipes)) return 2;
        ends[0] = pipes[1], ends[1] = pipes[0];
    } else if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) {
        return 2;
    }
    wrote = mmap(NULL, sizeof *wrote, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t child = fork();
    if (!child) {
        close(ends[0]);
        return reader(ends[1]);
    }
    close(ends[1]);
    writer = getpid();
    signal(SIGCHLD, SIG_IGN);
    struct sigaction action = {.sa_handler = on_timer};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval often = {{0, 5000}, {0, 5000}}, never = {0};
    setitimer(ITIMER_REAL, &often, NULL);
    unsigned long next = 0;
    for (long end = now_ms() + atol(argv[2]); now_ms() < end;) {
        for (int i = 0; i < WORDS; i++) words[i] = next++;
        write_all(ends[0]);
    }
    setitimer(ITIMER_REAL, &never, NULL);
    close(ends[0]);
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR) {}
    printf("%d %d\n", (int)forks, *wrote);
    return 0;
}
