/* Posts urgent events to a child whose threads have ended or gone elsewhere, as its argument says; prints what came.
 *
 *     leader          its first thread has ended, another runs
 *     waiter          a thread has ended while it waited for events
 *     jumped          a thread has jumped out of its wait
 *     delivering      a thread has ended while it delivered an event; the others make upcalls
 *     forks N         N children, one after the other, that have never made an upcall
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "sbx.h"

static sbx_t sbx;
static sigjmp_buf before;
static int jumps;

static uint64_t call(const char *name) {
    uint64_t words[1] = {0};
    sbx_reply reply = {0};
    sbx_call(&sbx, sbx_find(&sbx, name), words, &reply);
    return reply.word;
}

static void *run_on(void *unused) {
    (void)unused;
    for (volatile unsigned long count = 0;; count++) {}
}

static void *make_upcalls(void *unused) {
    (void)unused;
    for (;;) call("ledger.count");
}

static void leave(int signal) {
    (void)signal;
    if (jumps) siglongjmp(before, 1);
    syscall(SYS_exit, 0);
}

static void *wait_for_events(void *unused) {
    if (sigsetjmp(before, 1) == 0) sbx_wait(&sbx, 60000000000ull);
    return run_on(unused);
}

/* A thread that runs this, and is told to leave. */
static void leave_in(void *(*body)(void *), int after_us) {
    pthread_t id;
    pthread_create(&id, NULL, body, NULL);
    usleep(after_us);
    pthread_kill(id, SIGUSR1);
    usleep(100000);
}

static void child(const char *what) {
    pthread_t id;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGUSR1, leave);
    if (!strcmp(what, "forks")) run_on(NULL);
    call("ledger.count");
    if (!strcmp(what, "leader")) {
        pthread_create(&id, NULL, run_on, NULL);
        pthread_exit(NULL);
    }
    if (!strcmp(what, "delivering")) {
        leave_in(make_upcalls, 700000);
        make_upcalls(NULL);
    }
    jumps = !strcmp(what, "jumped");
    leave_in(wait_for_events, 200000);
    run_on(NULL);
}

static uint32_t post(pid_t to, const char *name, uint64_t first, uint64_t second) {
    uint64_t words[4] = {first, second}, count;
    return sbx_post(&sbx, SBX_TO_PID | SBX_URGENT, to, sbx_find(&sbx, name), words, &count);
}

/* Is an event seen within some seconds? */
static int is_seen(pid_t to, uint64_t number) {
    uint64_t seen = call("ledger.noted");
    struct timespec began, now;
    clock_gettime(CLOCK_MONOTONIC, &began);
    while (post(to, "ledger.note", 1, number) != SBX_OK) usleep(1000);
    do {
        if (call("ledger.noted") != seen) return 1;
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec - began.tv_sec < 10);
    return 0;
}

/* How many of `count` events a child sees, each posted when the one before has been seen. */
static int seen_by_child(const char *what, int count) {
    int seen = 0;
    pid_t pid = fork();
    if (pid == 0) child(what);
    if (strcmp(what, "forks")) usleep(400000);
    if (!strcmp(what, "delivering")) {
        /* In the thread that makes upcalls, which ends meanwhile. */
        while (post(pid, "faulty.sleep", 2000, 0) != SBX_OK) usleep(1000);
        usleep(700000);
    }
    while (seen < count && is_seen(pid, seen)) seen++;
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    return seen;
}

int main(int argc, char **argv) {
    if (argc < 2 || sbx_current(&sbx) != 0) return 2;
    int children = argc > 2 ? atoi(argv[2]) : 1, seen = 0;
    for (int index = 0; index < children; index++) seen += seen_by_child(argv[1], 50);
    printf("%d\n", seen);
    return 0;
}
