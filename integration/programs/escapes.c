/* Makes the same system call in every way that a program can: each must be seen by a handler. Says how
 * often it did. */

#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TIMES 10

/* A site that can be patched, and the instruction within it. */
long site(void);
long inner(void);
__asm__(".p2align 3\nsite: mov $110, %eax\ninner: syscall\nret\n");

static long jump_to_inner(void) {
    long result;
    __asm__ volatile("mov $110, %%eax\n call inner" : "=a"(result) : : "rcx", "r11", "memory");
    return result;
}

/* The kernel looks at the lower half of the number only; nor has that to be a constant. */
static long with_upper_half(void) {
    long result, number = SYS_getppid | 7L << 32;
    __asm__ volatile(".p2align 3\n syscall\n cmp $-4096, %%rax\n"
                     : "=a"(result)
                     : "a"(number)
                     : "rcx", "r11", "memory", "cc");
    return result;
}

static volatile int done = 0, wrong = 0;

static int in_thread(void *parent) {
    for (int i = 0; i < TIMES; i++) wrong |= site() != (intptr_t)parent;
    done = 1;
    syscall(SYS_exit, 0);
    return 0;
}

int main(void) {
    long parent = site();
    int count = 1;
    for (int i = 0; i < TIMES; i++, count++) wrong |= getppid() != parent;
    for (int i = 0; i < TIMES; i++, count++) wrong |= site() != parent;
    for (int i = 0; i < TIMES; i++, count++) wrong |= jump_to_inner() != parent;
    for (int i = 0; i < TIMES; i++, count++) wrong |= syscall(SYS_getppid) != parent;
    for (int i = 0; i < TIMES; i++, count++) wrong |= with_upper_half() != parent;

    /* Code that is made at run time, and made anew in the same place. */
    uint8_t *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    static const uint8_t made[] = {0xb8, 110, 0, 0, 0, 0x0f, 0x05, 0xc3};
    for (int i = 0; i < TIMES; i++, count++) {
        memset(code, 0x90, 64);
        memcpy(code + i, made, sizeof made);
        wrong |= ((long (*)(void))(code + i))() != parent;
    }

    /* A thread that no library knows of. */
    char *stack = malloc(64 << 10);
    int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    clone(in_thread, stack + (64 << 10), flags, (void *)parent);
    while (!done) sched_yield();
    count += TIMES;
    printf("%d\n", wrong ? -1 : count);
    return wrong;
}
