/* Somebody sends SIGSEGV, to which an extension is hooked, to a thread in an upcall that then fails by one of its
 * own: the upcall ends, the program has the one that was sent. Run with the extensions `pager` and `ledger`. */

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "sbx.h"

static volatile sig_atomic_t count;

static void handler(int signal) {
    (void)signal;
    count++;
}

static void *sends(void *to) {
    usleep(30000);
    pthread_kill(*(pthread_t *)to, SIGSEGV);
    return NULL;
}

int main(void) {
    sbx_t sandbox;
    if (sbx_current(&sandbox)) return 8;
    signal(SIGSEGV, handler);
    pthread_t own = pthread_self(), other;
    pthread_create(&other, NULL, sends, &own);
    uint64_t us = 100000;
    int status = sbx_call(&sandbox, sbx_find(&sandbox, "ledger.fault_after"), &us, NULL);
    pthread_join(other, NULL);
    sigset_t blocked;
    sigprocmask(SIG_BLOCK, NULL, &blocked);
    printf("%d %d %d\n", status != 0, (int)count, sigismember(&blocked, SIGSEGV));
    return 0;
}
