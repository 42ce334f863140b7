/* A signal interrupts the first call that waits, of each kind. Its handler needs much stack, and a child that
 * it forks goes on there and never comes back. */

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile int runs = 0, ended = 0;

static int deep(int left) {
    volatile char room[16384];
    memset((char *)room, left, sizeof room);
    return left == 0 ? 0 : deep(left - 1) + room[left] - left;
}

static void on_alarm(int signal) {
    (void)signal;
    runs += 1 + deep(16);
    pid_t child = fork();
    if (child == 0) {
        struct timespec short_time = {0, 1000000};
        nanosleep(&short_time, NULL);
        _exit(deep(16) + 5);
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0) {
    }
    ended += WIFEXITED(status) && WEXITSTATUS(status) == 5;
}

static void soon(void) {
    struct itimerval time = {{0, 0}, {0, 20000}};
    setitimer(ITIMER_REAL, &time, NULL);
}

static void say(const char *name, int result) {
    printf("%s: %d, %s\n", name, result, result < 0 ? strerror(errno) : "-");
}

int main(void) {
    struct sigaction action = {.sa_handler = on_alarm};
    sigaction(SIGALRM, &action, NULL);
    int pipes[2];
    if (pipe(pipes) != 0) return 1;
    struct pollfd one = {pipes[0], POLLIN, 0};
    struct timespec long_time = {20, 0};
    struct epoll_event event;
    int epoll = epoll_create1(0);
    sigset_t none, alarms;
    sigemptyset(&none);
    sigemptyset(&alarms);
    sigaddset(&alarms, SIGALRM);
    char byte;
    soon(), say("read", read(pipes[0], &byte, 1));
    soon(), say("poll", poll(&one, 1, 20000));
    soon(), say("select", select(0, NULL, NULL, NULL, &(struct timeval){20, 0}));
    soon(), say("epoll_wait", epoll_wait(epoll, &event, 1, 20000));
    soon(), say("no libc's", syscall(SYS_poll, &one, 1, 20000));
    sigprocmask(SIG_BLOCK, &alarms, NULL);
    soon(), say("ppoll", ppoll(&one, 1, &long_time, &none));
    soon(), say("pselect", pselect(0, NULL, NULL, NULL, &long_time, &none));
    soon(), say("epoll_pwait", epoll_pwait(epoll, &event, 1, 20000, &none));
    soon(), say("sigsuspend", sigsuspend(&none));
    printf("%d %d\n", runs, ended);
    return 0;
}
