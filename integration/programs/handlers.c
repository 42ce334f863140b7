/* What a handler of the program's own signal does on top of an upcall, as the arguments say; prints what
 * came of it.
 *
 *     jump            leaves it by siglongjmp, a hundred times, and makes an upcall after each
 *     rest            leaves it so, computes for half a second, and makes no other until it reads a line
 *     hold            as jump, five times, out of an upcall that holds a lock
 *     fork            forks; the child returns from the handler, and both make other upcalls
 *     forkhold        the same, in an upcall that holds a lock
 *     ... alt         the handler runs on an alternate stack
 *
 *     vfork           no handler: twenty children of vfork are killed inside an upcall that holds a lock
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "sbx.h"

static sbx_t sbx;
static sigjmp_buf back;
static volatile pid_t child = -1;
static volatile int within;

static uint32_t call(const char *name, uint64_t word, uint64_t *result) {
    uint64_t words[1] = {word};
    sbx_reply reply = {0};
    uint32_t status = sbx_call(&sbx, sbx_find(&sbx, name), words, &reply);
    if (result) *result = reply.word;
    return status;
}

static void jump(int signal) {
    /* An upcall within an upcall, from the program's stack, is refused. */
    within = (int)call("hello.add", 1, NULL);
    siglongjmp(back, 1);
}

static void split(int signal) { child = fork(); }

static void alarm_in(long us) {
    struct itimerval time = {.it_value = {.tv_usec = us}};
    setitimer(ITIMER_REAL, &time, NULL);
}

static volatile pid_t inside;

static void *killer(void *unused) {
    for (int i = 0; i < 20; i++) {
        while (!inside) usleep(1000);
        usleep(20000);
        pid_t victim = inside;
        inside = 0;
        kill(victim, SIGKILL);
    }
    return unused;
}

static int vforks(void) {
    pthread_t id;
    pthread_create(&id, NULL, killer, NULL);
    for (int i = 0; i < 20; i++) {
        pid_t pid = vfork();
        if (pid == 0) {
            inside = (pid_t)syscall(SYS_getpid);
            call("ledger.hold", 4000, NULL);
            _exit(1);
        }
        int ended = 0;
        waitpid(pid, &ended, 0);
        if (!WIFSIGNALED(ended)) return 10;
        uint32_t status = call("ledger.mutex_add", 1, NULL);
        if (status == SBX_FAILED) {
            call("ledger.mutex_recover", 0, NULL);
            status = call("ledger.mutex_add", 1, NULL);
        }
        if (status != SBX_OK) {
            printf("after %d: status %u\n", i, status);
            return 3;
        }
    }
    printf("twenty\n");
    fflush(stdout);
    getchar();
    return 0;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    int is_fork = !strncmp(what, "fork", 4), is_hold = !!strstr(what, "hold");
    struct sigaction action = {.sa_handler = is_fork ? split : jump};
    const char *slow = is_hold ? "ledger.hold" : "ledger.linger";
    uint64_t unit = is_hold ? 1 : 1000;
    if (argc > 2) {
        stack_t stack = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
        sigaltstack(&stack, NULL);
        action.sa_flags = SA_ONSTACK;
    }
    if (sbx_current(&sbx) != 0) return 2;
    if (!strcmp(what, "vfork")) return vforks();
    sigaction(SIGALRM, &action, NULL);
    if (is_fork) {
        alarm_in(50000);
        uint32_t status = call(slow, 400 * unit, NULL);
        uint32_t next = call("ledger.mutex_add", 1, NULL);
        if (child == 0) _exit(status == 33 /* aborted */ && next == SBX_OK ? 0 : 100 + status);
        int ended = -1;
        waitpid(child, &ended, 0);
        printf("%u %u %d\n", status, next, WEXITSTATUS(ended));
        return 0;
    }
    int times = !strcmp(what, "rest") ? 1 : is_hold ? 5 : 100;
    volatile int left = 0;
    for (volatile int i = 0; i < times; i++) {
        if (sigsetjmp(back, 1) == 0) {
            alarm_in(5000);
            call(slow, 4000 * unit, NULL);
        } else {
            left++;
        }
        if (!strcmp(what, "rest")) {
            clock_t until = clock() + CLOCKS_PER_SEC / 2;
            while (clock() < until) {}
            printf("left\n");
            fflush(stdout);
            getchar();
        }
        uint32_t status = call(is_hold ? "ledger.mutex_add" : "hello.add", 1, NULL);
        if (is_hold && status == SBX_FAILED) {
            /* The figures may be broken; the lock is not. */
            call("ledger.mutex_recover", 0, NULL);
            call("ledger.rwlock_recover", 0, NULL);
            status = call("ledger.mutex_add", 1, NULL);
        }
        if (status != SBX_OK) {
            printf("upcall %d after it: status %u\n", i, status);
            return 3;
        }
    }
    printf("left %d, within %d\n", left, within);
    return 0;
}
