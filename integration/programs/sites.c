/* Many threads make system calls from sites of all forms and alignments, from the first call on, with
 * every signal blocked; others are in the kernel behind a site while it is patched. With VFORKED a child that has their
 * memory makes calls from the same sites at the same time. Says how often it made getppid. */

#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define THREADS 8
#ifndef TURNS
#define TURNS 2000
#endif
#define SITES 64

/* Sites of 16 bytes' alignment and every offset in it: by number, then compared. */
__asm__(".text\n.p2align 4\n.globl numbered\nnumbered:\n"
        ".set k, 0\n.rept 32\n.p2align 5\n.skip k % 16, 0x90\nmov $110, %eax\nsyscall\nret\n.set k, k + 1\n.endr\n"
        ".p2align 5\n.globl compared\ncompared:\n"
        ".set k, 0\n.rept 32\n.p2align 5\n.skip k % 16, 0x90\nsyscall\ncmp $-4095, %rax\njae 1f\nret\n1: ud2\n.set k, k + 1\n.endr\n"
        ".p2align 5\n.globl reading\nreading: xor %eax, %eax\nsyscall\ncmp $-4095, %rax\nmov %rcx, %rdx\nret\n");
extern char numbered[], compared[], reading[];

static long parent;
static volatile int wrong = 0, go = 0;

/* The call from site `at`, with registers that it must keep. */
static long from_site(int at) {
    char *site = (at < 32 ? numbered + at * 32 : compared + (at - 32) * 32) + at % 16;
    register long r8 __asm__("r8") = 8, r9 __asm__("r9") = 9, r10 __asm__("r10") = 10;
    register long r12 __asm__("r12") = at, r13 __asm__("r13") = (long)site;
    long result, rdi = 1, rsi = 2, rdx = 3;
    __asm__ volatile("sub $128, %%rsp\n call *%%r13\n add $128, %%rsp"
                     : "=a"(result), "+D"(rdi), "+S"(rsi), "+d"(rdx), "+r"(r8), "+r"(r9), "+r"(r10), "+r"(r12)
                     : "a"(110L), "r"(r13)
                     : "rcx", "r11", "memory", "cc");
    if (rdi != 1 || rsi != 2 || rdx != 3 || r8 != 8 || r9 != 9 || r10 != 10 || r12 != at) wrong |= 2;
    return result;
}

static void *caller(void *seed) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    while (!go) sched_yield();
    for (int turn = 0; turn < TURNS; turn++) {
        int at = (turn * 7 + (int)(intptr_t)seed * 11) % SITES;
        if (from_site(at) != parent) wrong |= 1;
    }
    return NULL;
}

/* Comes back from the kernel behind `reading`; rcx is that address then. */
static void *reader(void *pipe) {
    char byte = 0;
    long result, behind;
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    __asm__ volatile("sub $128, %%rsp\n call reading\n add $128, %%rsp"
                     : "=a"(result), "=d"(behind)
                     : "D"((long)*(int *)pipe), "S"(&byte), "d"(1L)
                     : "rcx", "r11", "memory", "cc");
    if (result != 1 || byte != 'x') wrong |= 4;
    if (behind != (long)reading + 4) wrong |= 8;
    return NULL;
}

/* A child with a stack of its own, from a site that is patched: it finds there where to return to, and
 * rcx is an address at the site then. */
__asm__("end: lea compared(%rip), %rax\nsub %rax, %rcx\nmov $7, %edi\ncmp $1024, %rcx\njb 1f\n"
        "mov $8, %edi\n1: mov $60, %eax\nsyscall\n");
extern void end(void);

static int clone_from_site(int at) {
    static long stack[512] __attribute__((aligned(16)));
    char *site = compared + (at - 32) * 32 + at % 16;
    long result, top = (long)&stack[500];
    int status;
    stack[500] = (long)end;
    __asm__ volatile("sub $128, %%rsp\n call *%[site]\n add $128, %%rsp"
                     : "=a"(result)
                     : "a"(56L), "D"(0x100L | SIGCHLD), "S"(top), "d"(0L), [site] "r"(site)
                     : "rcx", "r11", "memory", "cc");
    return waitpid((pid_t)result, &status, 0) == result && WIFEXITED(status) && WEXITSTATUS(status) == 7;
}

/* Let them begin; how many calls that has taken. */
static int begin(void) {
#ifdef VFORKED
    pid_t own = getpid(), child = vfork();
    if (child == 0) {
        go = 1;
        for (int at = 0; at < SITES; at++)
            if (from_site(at) != own) wrong |= 64;
        _exit(0);
    }
    if (waitpid(child, NULL, 0) != child) wrong |= 128;
    return SITES;
#else
    go = 1;
    return 0;
#endif
}

int main(void) {
    int fds[2];
    pthread_t readers[4], callers[THREADS];
    if (pipe(fds)) return 1;
    parent = getppid();
    for (int i = 0; i < 4; i++) pthread_create(&readers[i], NULL, reader, fds);
    usleep(20000);
    for (long i = 0; i < THREADS; i++) pthread_create(&callers[i], NULL, caller, (void *)i);
    int began = begin();
    for (int i = 0; i < THREADS; i++) pthread_join(callers[i], NULL);
    for (int at = 32; at < SITES; at++)
        if (!clone_from_site(at)) wrong |= 32;
    if (write(fds[1], "xxxx", 4) != 4) wrong |= 16;
    for (int i = 0; i < 4; i++) pthread_join(readers[i], NULL);
    for (int i = 0; i < 4; i++) {
        /* Patched by now. */
        if (write(fds[1], "x", 1) != 1) wrong |= 16;
        reader(fds);
    }
    if (wrong) printf("wrong: %d\n", wrong);
    else printf("%d\n", THREADS * TURNS + 1 + began);
    return wrong != 0;
}
