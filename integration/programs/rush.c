/* Threads meet each of many fresh sites at the same moment: one of them patches it, the others come back from the kernel
 * behind it, or are about to patch it as well. Says how many calls came to what they should. */

#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <unistd.h>

enum { THREADS = 6, SITES = 4000, SITE_LEN = 32 };

__asm__(".text\n.p2align 5\n.globl sites\nsites:\n"
        ".rept 4000\n.p2align 5\nmov $110, %eax\nsyscall\ncmp $-4095, %rax\njae 1f\nret\n1: ud2\n.endr\n");
extern char sites[];

static int arrived, right;

static void *caller(void *unused) {
    long parent = getppid();
    for (int site = 0; site < SITES; site++) {
        __atomic_fetch_add(&arrived, 1, __ATOMIC_SEQ_CST);
        for (int looks = 0; __atomic_load_n(&arrived, __ATOMIC_SEQ_CST) < (site + 1) * THREADS;)
            if (++looks % 1000 == 0) sched_yield();
        if (((long (*)(long))(sites + site * SITE_LEN))(110) == parent) __atomic_fetch_add(&right, 1, __ATOMIC_RELAXED);
    }
    return unused;
}

int main(void) {
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, caller, NULL);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    printf("%d\n", right);
    return 0;
}
