// A signal that is pending and blocked, and that the call's own mask lets through: the call is interrupted by it. And
// one that comes while a thread looks. Prints what each call says.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { KINDS = 3, CALLS = 5, ROUNDS = 200 };

static const char *const kinds[] = {"pair", "pipe", "eventfd"};
static const char *const calls[] = {"ppoll", "pselect", "epoll_pwait", "epoll_pwait2", "ppoll, at once"};
static volatile sig_atomic_t handled;

static void handle(int signal) { handled += signal == SIGUSR1; }

static int wait_by(int call, int fd, int epoll, const sigset_t *mask) {
    struct timespec limit = {.tv_sec = call == 4 ? 0 : 1};
    struct pollfd one = {.fd = fd, .events = POLLIN};
    struct epoll_event event;
    fd_set reads;
    FD_ZERO(&reads);
    FD_SET(fd, &reads);
    switch (call) {
    case 1: return pselect(fd + 1, &reads, NULL, NULL, &limit, mask);
    case 2: return epoll_pwait(epoll, &event, 1, 1000, mask);
    case 3: return syscall(SYS_epoll_pwait2, epoll, &event, 1, &limit, mask, 8);
    default: return ppoll(&one, 1, &limit, mask);
    }
}

static void try(int kind, int call, int has_bytes) {
    int made[2];
    if (kind == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, made)) return;
    if (kind == 1 && pipe(made)) return;
    if (kind == 2) made[0] = made[1] = eventfd(0, 0);
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(epoll, EPOLL_CTL_ADD, made[0], &event);
    sigset_t all, none;
    sigemptyset(&none);
    sigemptyset(&all);
    sigaddset(&all, SIGUSR1);
    sigprocmask(SIG_BLOCK, &all, NULL);
    int said[3] = {0};
    handled = 0;
    char bytes[8] = {1};
    for (int i = 0; i < ROUNDS; i++) {
        if (has_bytes && write(made[1], bytes, 8) != 8) return;
        raise(SIGUSR1);
        int result = wait_by(call, made[0], epoll, &none);
        said[result < 0 ? errno == EINTR ? 0 : 2 : 1]++;
        if (has_bytes && read(made[0], bytes, 8) != 8) return;
        // What the call did not let through is through now.
        sigprocmask(SIG_UNBLOCK, &all, NULL);
        sigprocmask(SIG_BLOCK, &all, NULL);
    }
    printf("%s, %s, %s: interrupted %d, not %d, %d; handled %d\n", kinds[kind], calls[call], has_bytes ? "ready" : "nothing",
           said[0], said[1], said[2], handled);
    close(epoll);
    close(made[0]);
    if (made[1] != made[0]) close(made[1]);
}

int main(void) {
    struct sigaction action = {.sa_handler = handle};
    sigaction(SIGUSR1, &action, NULL);
    for (int kind = 0; kind < KINDS; kind++)
        for (int call = 0; call < CALLS; call++)
            for (int has_bytes = 0; has_bytes < 2; has_bytes++) try(kind, call, has_bytes);
    return 0;
}
