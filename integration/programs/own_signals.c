/* A program with signal handlers of its own, in a sandbox whose libos has them too. Prints what it
 * sees; must print the same without a sandbox, but for the upcalls (argument "upcalls"). */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#include "sbx.h"

static sigjmp_buf back;
static volatile int caught, on_alternate, user_seen;
static char alternate[65536];

static void on_fault(int signal, siginfo_t *info, void *context) {
    char here;
    (void)context;
    caught = signal == SIGSEGV && info->si_addr == (void *)64 ? 1 : 2;
    on_alternate = &here >= alternate && &here < alternate + sizeof alternate;
    siglongjmp(back, 1);
}

static void on_user(int signal) { user_seen += signal == SIGUSR1; }

static void skip(int signal, siginfo_t *info, void *context) {
    ucontext_t *user = context;
    (void)signal, (void)info;
    caught = 3;
    user->uc_mcontext.gregs[REG_RIP] += 2; /* over the ud2 */
}

static void own_fault(const char *what) {
    caught = on_alternate = 0;
    if (sigsetjmp(back, 1) == 0) *(volatile int *)64 = 1;
    printf("%s: caught %d, alternate stack %d\n", what, caught, on_alternate);
}

/* One failing upcall, of another kind each time: an extension that fails too often in a row is put
 * into quarantine. */
static void failing_upcall(void) {
    static const char *handlers[] = {"faulty.read_at", "faulty.overflow", "faulty.illegal"};
    static int turn;
    sbx_t sbx;
    uint64_t words[1] = {1000000};
    sbx_reply reply = {0};
    uint32_t status;
    int tries = 0;
    if (sbx_current(&sbx) != 0) exit(10);
    const uint64_t handle = sbx_find(&sbx, handlers[turn++ % 3]);
    while ((status = sbx_call(&sbx, handle, words, &reply)) == 22)
        if (usleep(1000), ++tries > 5000) exit(11);
    if (status < 32) exit(12);
}

static void *thread(void *argument) {
    sigset_t all;
    sigfillset(&all);
    sigdelset(&all, SIGSEGV);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    if (argument) failing_upcall();
    own_fault("thread");
    return NULL;
}

int main(int argc, char **argv) {
    int upcalls = argc > 1 && !strcmp(argv[1], "upcalls");
    struct sigaction action = {0}, old;
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate}, was;
    pthread_t id;
    setvbuf(stdout, NULL, _IOLBF, 0);

    sigaction(SIGSEGV, NULL, &old);
    printf("first: default %d\n", old.sa_handler == SIG_DFL);
    sigaltstack(NULL, &was);
    printf("first: no alternate stack %d\n", was.ss_flags == SS_DISABLE);
    if (upcalls) failing_upcall();

    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, NULL);
    own_fault("without a stack");
    if (upcalls) failing_upcall();
    sigaltstack(&stack, NULL);
    own_fault("not asked for");
    action.sa_flags |= SA_ONSTACK;
    sigaction(SIGSEGV, &action, &old);
    printf("old: mine %d, flags %d\n", old.sa_sigaction == on_fault, old.sa_flags == SA_SIGINFO);
    own_fault("asked for");
    if (upcalls) failing_upcall();
    own_fault("after upcalls");
    pthread_create(&id, NULL, thread, upcalls ? &id : NULL);
    pthread_join(id, NULL);

    action.sa_sigaction = skip;
    sigaction(SIGILL, &action, NULL);
    __asm__ volatile("ud2");
    printf("went on after ud2: %d\n", caught);
    signal(SIGUSR1, on_user);
    raise(SIGUSR1);
    printf("user %d\n", user_seen);
    signal(SIGFPE, SIG_IGN);
    raise(SIGFPE);
    printf("ignored\n");
    signal(SIGSEGV, SIG_DFL);
    if (upcalls) failing_upcall();
    *(volatile int *)64 = 1;
    return 0;
}
