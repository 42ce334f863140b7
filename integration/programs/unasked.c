/* Makes a folder that it must not make: in signal handlers that may have interrupted the one who is asked, in more threads than
 * can be asked about, and in a process that shares its parent's memory and nothing else. Says how often it could. */

#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define THREADS 4300

static char path[256];
static volatile int made = 0, times = 0, over = 0;

static void try(void) {
    if (!mkdir(path, 0700)) {
        __sync_fetch_and_add(&made, 1);
        rmdir(path);
    }
    __sync_fetch_and_add(&times, 1);
}

static void handles(int signal) { try(); }

static void *runs(void *unused) {
    try();
    while (!over) usleep(1000000);
    return NULL;
}

static int shares(void *unused) {
    try();
    _exit(0);
}

int main(int count, char **words) {
    snprintf(path, sizeof path, "%s/forbidden", words[1]);
    struct sigaction action = {.sa_handler = handles};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval often = {.it_interval = {.tv_usec = 50}, .it_value = {.tv_usec = 50}}, never = {0};
    setitimer(ITIMER_REAL, &often, NULL);
    while (times < 50000) try();
    setitimer(ITIMER_REAL, &never, NULL);
    printf("%d in handlers, ", made);

    made = 0;
    char *stack = malloc(64 << 10);
    int status;
    waitpid(clone(shares, stack + (64 << 10), CLONE_VM | SIGCHLD, NULL), &status, 0);
    printf("%d in a shared memory, ", made);

    made = times = 0;
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 << 10);
    static pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], &small, runs, NULL)) return 1;
    while (times < THREADS) usleep(1000);
    over = 1;
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    printf("%d in threads\n", made);
    return 0;
}
