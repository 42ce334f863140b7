/* Makes upcalls from threads of every kind, as its argument says; prints what they came to.
 *
 *     once            one upcall
 *     short N         N threads, one after the other in each of four lanes, an upcall each
 *     raw             a thread by clone(2) alone, which shares its parent's FS base
 *     exec            exec while another thread is inside an upcall
 *     vfork           an upcall between vfork and exec, in the parent's memory
 *     again NAME      a thread with the tid of one that has ended, and another stack, calls a handler that fails
 *     borrowed NAME   a child of vfork calls a handler that fails, and its parent goes on
 *     shared          an upcall in a process that shares this one's memory, while this makes another
 *     stale           an upcall, then another after a line of input
 *     reused NAME     a thread after another, of the same stack, calls a handler that fails
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sbx.h"

static sbx_t sbx;
static sbx_handle add, nap;

static uint64_t one(uint64_t n) {
    uint64_t words[1] = {n};
    sbx_reply reply = {0};
    uint32_t status = sbx_call(&sbx, add, words, &reply);
    if (status != SBX_OK) {
        printf("status %u\n", status);
        exit(3);
    }
    return reply.word;
}

static void *one_in_thread(void *unused) {
    one(1);
    return unused;
}

static void *lane(void *count) {
    for (long left = (long)count; left > 0; left--) {
        pthread_t id;
        if (pthread_create(&id, NULL, one_in_thread, NULL)) exit(4);
        pthread_join(id, NULL);
    }
    return NULL;
}

static int raw_thread(void *done) {
    for (int i = 0; i < 1000; i++) one(1);
    __atomic_store_n((int *)done, 1, __ATOMIC_RELEASE);
    return 0;
}

static pthread_t former;

static void *first_of_two(void *unused) {
    one(1);
    former = pthread_self();
    return unused;
}

static void *second_of_two(void *name) {
    uint64_t words[1] = {1 << 24};
    sbx_reply reply = {0};
    uint32_t status = sbx_call(&sbx, sbx_find(&sbx, name), words, &reply);
    printf("%s %u\n", former == pthread_self() ? "same" : "other", status);
    return NULL;
}

static pid_t ended;

static void *first_with_its_tid(void *unused) {
    one(1);
    ended = gettid();
    return unused;
}

static void *second_with_its_tid(void *name) {
    uint64_t words[1] = {1 << 24};
    sbx_reply reply = {0};
    if (gettid() != ended) return name;
    printf("same %u\n", sbx_call(&sbx, sbx_find(&sbx, name), words, &reply));
    return NULL;
}

/* Have the next thread get the tid of the one that has ended, if nobody else does. */
static void come_to(pid_t tid) {
    FILE *last = fopen("/proc/sys/kernel/ns_last_pid", "w");
    if (!last || fprintf(last, "%d", tid - 1) < 0 || fclose(last)) exit(9);
}

static int shared_process(void *status) {
    uint64_t words[1] = {1};
    sbx_reply reply = {0};
    *(uint32_t *)status = sbx_call(&sbx, add, words, &reply);
    return 0;
}

static void *sleeper(void *unused) {
    uint64_t words[1] = {60000};
    sbx_reply reply = {0};
    sbx_call(&sbx, nap, words, &reply);
    return unused;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "once";
    pthread_t ids[4];
    if (sbx_current(&sbx) != 0) return 2;
    add = sbx_find(&sbx, "hello.add");
    nap = sbx_find(&sbx, "faulty.sleep");
    if (!strcmp(what, "once")) {
        printf("%d\n", one(1) > 0);
    } else if (!strcmp(what, "short")) {
        for (int i = 0; i < 4; i++) pthread_create(&ids[i], NULL, lane, (void *)(atol(argv[2]) / 4));
        for (int i = 0; i < 4; i++) pthread_join(ids[i], NULL);
        printf("%llu\n", (unsigned long long)one(0));
    } else if (!strcmp(what, "raw")) {
        static int done;
        size_t len = 1 << 20;
        char *stack = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
        if (clone(raw_thread, stack + len, flags, &done) < 0) return 5;
        for (int i = 0; i < 1000; i++) one(1);
        while (!__atomic_load_n(&done, __ATOMIC_ACQUIRE)) usleep(1000);
        printf("%llu\n", (unsigned long long)one(0));
    } else if (!strcmp(what, "exec")) {
        pthread_create(&ids[0], NULL, sleeper, NULL);
        usleep(100000);
        execl("/bin/echo", "echo", "after exec", NULL);
    } else if (!strcmp(what, "vfork")) {
        int status;
        one(1);
        pid_t child = vfork();
        if (child == 0) {
            one(1);
            execl("/bin/true", "true", NULL);
            _exit(6);
        }
        waitpid(child, &status, 0);
        printf("%d %llu\n", status, (unsigned long long)one(0));
    } else if (!strcmp(what, "again")) {
        pthread_attr_t large;
        void *missed = argv;
        pthread_attr_init(&large);
        pthread_attr_setstacksize(&large, 16 << 20);
        pthread_create(&ids[0], NULL, first_with_its_tid, NULL);
        pthread_join(ids[0], NULL);
        for (int left = 1000; missed && left > 0; left--) {
            come_to(ended);
            pthread_create(&ids[0], &large, second_with_its_tid, argv[2]);
            pthread_join(ids[0], &missed);
        }
    } else if (!strcmp(what, "borrowed")) {
        uint64_t words[1] = {1 << 24};
        int status;
        one(1);
        pid_t child = vfork();
        if (child == 0) {
            sbx_reply reply = {0};
            _exit((int)sbx_call(&sbx, sbx_find(&sbx, argv[2]), words, &reply));
        }
        waitpid(child, &status, 0);
        one(1);
        printf("same %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
    } else if (!strcmp(what, "shared")) {
        static char stack[1 << 18];
        uint32_t status = 0;
        if (clone(shared_process, stack + sizeof stack, CLONE_VM | SIGCHLD, &status) < 0) return 8;
        one(1);
        wait(NULL);
        printf("%u %llu\n", status, (unsigned long long)one(0));
    } else if (!strcmp(what, "reused")) {
        void *(*both[])(void *) = {first_of_two, second_of_two};
        for (int i = 0; i < 2; i++) {
            pthread_create(&ids[i], NULL, both[i], argv[2]);
            pthread_join(ids[i], NULL);
        }
    } else if (!strcmp(what, "stale")) {
        char line[8];
        printf("%d\n", one(1) > 0);
        fflush(stdout);
        if (!fgets(line, sizeof line, stdin)) return 7;
        uint64_t words[1] = {1};
        sbx_reply reply = {0};
        printf("status %u\n", sbx_call(&sbx, add, words, &reply));
    }
    return 0;
}
