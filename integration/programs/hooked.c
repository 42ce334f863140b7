/* Signals that an extension is hooked to: what the program itself sees of them is what it would see
 * without. Run in a sandbox with the extensions `watcher` and `ledger`. */

#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sbx.h"

static volatile sig_atomic_t count[65];
static volatile int inside = 0, during = 0;

static void handler(int signal) {
    count[signal]++;
    during += inside;
}

static void install(int signal, void (*to)(int), int flags) {
    struct sigaction action = {.sa_handler = to, .sa_flags = flags};
    sigaction(signal, &action, NULL);
}

static sbx_t sandbox;
static sbx_handle figure_handler, linger_handler;

static unsigned long figure(unsigned long which) {
    sbx_reply reply = {0};
    uint64_t word = which;
    if (sbx_call(&sandbox, figure_handler, &word, &reply)) exit(9);
    return reply.word;
}

static void check(const char *what, long got, long expected) {
    if (got != expected) {
        printf("%s: %ld, not %ld\n", what, got, expected);
        exit(1);
    }
}

static void alarm_in(long us) {
    struct itimerval when = {.it_value = {.tv_usec = us}};
    setitimer(ITIMER_REAL, &when, NULL);
}

int main(void) {
    if (sbx_current(&sandbox)) return 8;
    figure_handler = sbx_find(&sandbox, "watcher.figure");
    linger_handler = sbx_find(&sandbox, "ledger.linger");

    install(SIGUSR1, handler, 0);
    install(SIGUSR2, handler, 0);
    install(SIGIO, handler, 0);
    for (int i = 0; i < 100; i++) {
        kill(getpid(), SIGUSR1);
        kill(getpid(), SIGUSR2);
    }
    kill(getpid(), SIGIO);
    kill(getpid(), SIGIO);
    check("observed", figure(32 + SIGUSR1), 100);
    check("sender", figure(6), getpid());
    check("observed, in the program", count[SIGUSR1], 100);
    check("answered", figure(32 + SIGUSR2), 100);
    check("answered, in the program", count[SIGUSR2], 0);
    check("failed", figure(32 + SIGIO), 2);
    check("failed, in the program", count[SIGIO], 2);

    /* What it has set is what it finds. */
    struct sigaction found;
    sigaction(SIGUSR1, NULL, &found);
    check("found", found.sa_handler == handler, 1);
    void (*former)(int) = signal(SIGUSR1, SIG_IGN);
    kill(getpid(), SIGUSR1);
    sigaction(SIGUSR1, NULL, &found);
    check("ignored", found.sa_handler == SIG_IGN, 1);
    signal(SIGUSR1, former);
    kill(getpid(), SIGUSR1);
    check("put back", count[SIGUSR1], 101);
    check("put back, observed", figure(32 + SIGUSR1), 101);
    pid_t sender = fork();
    if (!sender) {
        kill(getppid(), SIGUSR1);
        _exit(0);
    }
    while (wait(NULL) < 0) continue;
    check("put back, sender", figure(6), sender);

    /* A call that waits fails with EINTR, unless the program asked for the other. */
    int ends[2];
    char byte;
    if (pipe(ends)) return 7;
    install(SIGALRM, handler, 0);
    alarm_in(20000);
    check("read", read(ends[0], &byte, 1), -1);
    check("errno", errno, EINTR);
    check("alarms", count[SIGALRM], 1);
    install(SIGALRM, handler, SA_RESTART);
    alarm_in(20000);
    if (!fork()) {
        usleep(100000);
        check("write", write(ends[1], "x", 1), 1);
        _exit(0);
    }
    check("read again", read(ends[0], &byte, 1), 1);
    check("alarms", count[SIGALRM], 2);
    wait(NULL);

    /* During an upcall it waits for the end of that. */
    uint64_t us = 100000;
    alarm_in(20000);
    inside = 1;
    check("upcall", sbx_call(&sandbox, linger_handler, &us, NULL), 0);
    inside = 0;
    check("alarms", count[SIGALRM], 3);
    check("observed", figure(32 + SIGALRM), 3);
    sigset_t blocked;
    sigprocmask(SIG_BLOCK, NULL, &blocked);
    check("blocked", sigismember(&blocked, SIGALRM), 0);

    /* Several that come at once, and ever more of them. */
    sigset_t both;
    int users = count[SIGUSR1], seen = figure(32 + SIGUSR1);
    sigemptyset(&both);
    sigaddset(&both, SIGUSR1);
    sigaddset(&both, SIGHUP);
    install(SIGHUP, handler, 0);
    for (int i = 0; i < 20; i++) {
        sigprocmask(SIG_BLOCK, &both, NULL);
        kill(getpid(), SIGUSR1);
        kill(getpid(), SIGHUP);
        sigprocmask(SIG_UNBLOCK, &both, NULL);
    }
    check("both, one", count[SIGUSR1], users + 20);
    check("both, other", count[SIGHUP], 20);
    check("both, observed", figure(32 + SIGUSR1), seen + 20);
    if (!fork()) {
        for (int i = 0; i < 2000; i++) kill(getppid(), i % 2 ? SIGUSR1 : SIGALRM);
        _exit(0);
    }
    while (wait(NULL) < 0) continue;
    install(SIGHUP, SIG_DFL, 0);
    check("storm", count[SIGUSR1] > users + 20, 1);
    sigprocmask(SIG_BLOCK, NULL, &blocked);
    check("blocked", sigismember(&blocked, SIGUSR1) + sigismember(&blocked, SIGALRM), 0);

    /* Default actions. */
    int status = 0;
    unsigned long before = figure(32 + SIGHUP);
    if (!fork()) {
        kill(getpid(), SIGHUP);
        _exit(5);
    }
    wait(&status);
    check("default", WIFSIGNALED(status) ? WTERMSIG(status) : -1, SIGHUP);
    check("hang-ups", figure(32 + SIGHUP), before + 1);
    check("children", figure(32 + SIGCHLD) >= 2, 1);
    signal(SIGCHLD, SIG_IGN);
    if (!fork()) _exit(0);
    check("no child to wait for", wait(&status), -1);
    check("errno", errno, ECHILD);
    signal(SIGCHLD, SIG_DFL);

    /* What is ignored stays ignored over exec, for children as well. */
    signal(SIGHUP, SIG_IGN);
    check("nohup", system("kill -HUP $$; exit 3") >> 8, 3);
    puts("as without");
    return 0;
}
