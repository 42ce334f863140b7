/* Code that comes and goes: mapped later, at the same place again, made writable and written anew; and a
 * filter of the program's own, which must have the last word. Says how often it made getppid. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <ucontext.h>
#include <unistd.h>

static const uint8_t by_number[] = {0xb8, 110, 0, 0, 0, 0x0f, 0x05, 0xc3};
static const uint8_t compared[] = {0xb8, 110, 0, 0, 0, 0x90, 0x0f, 0x05, 0x48, 0x3d, 1, 0xf0, 0xff, 0xff, 0xc3};

static int wrong = 0, count = 0;
static long parent;

static void call(void *code) {
    for (int i = 0; i < 5; i++, count++)
        if (((long (*)(void))code)() != parent) wrong |= 1;
}

static int filter(unsigned number, unsigned action) {
    struct sock_filter steps[] = {
        {BPF_LD | BPF_W | BPF_ABS, 0, 0, 0},
        {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, number},
        {BPF_RET | BPF_K, 0, 0, action},
        {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
    };
    struct sock_fprog program = {4, steps};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static void emulate(int signal, siginfo_t *info, void *user) {
    (void)signal;
    if (info->si_syscall != SYS_getppid) wrong |= 2;
    ((ucontext_t *)user)->uc_mcontext.gregs[REG_RAX] = 4711;
}

int main(void) {
    char name[] = "/tmp/sbx-later-XXXXXX";
    int file = mkstemp(name);
    unlink(name);
    parent = getppid();
    count++;
    void *at = NULL;
    for (int round = 0; round < 20; round++) {
        /* Two forms in turns, at one address. */
        const uint8_t *code = round % 2 ? by_number : compared;
        size_t len = round % 2 ? sizeof by_number : sizeof compared;
        uint8_t page[4096];
        memset(page, 0xcc, sizeof page);
        memcpy(page + round % 3, code, len);
        if (pwrite(file, page, sizeof page, 0) != sizeof page) return 1;
        int fixed = at ? MAP_FIXED : 0;
        at = mmap(at, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | fixed, file, 0);
        call((char *)at + round % 3);
        /* The program writes what was there again, and something else. */
        mprotect(at, 4096, PROT_READ | PROT_WRITE);
        memcpy((char *)at + round % 3, code, len);
        mprotect(at, 4096, PROT_READ | PROT_EXEC);
        call((char *)at + round % 3);
        mprotect(at, 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
        memcpy((char *)at + 100, by_number, sizeof by_number);
        call((char *)at + 100);
    }

    struct utsname uts;
    if (uname(&uts)) wrong |= 4;
    if (filter(SYS_uname, SECCOMP_RET_ERRNO | 77)) wrong |= 8;
    errno = 0;
    for (int i = 0; i < 3; i++)
        if (uname(&uts) != -1 || errno != 77) wrong |= 16;
    /* As browsers do: what is trapped is emulated. */
    struct sigaction action = {.sa_sigaction = emulate, .sa_flags = SA_SIGINFO};
    sigaction(SIGSYS, &action, NULL);
    if (filter(SYS_getppid, SECCOMP_RET_TRAP)) wrong |= 32;
    for (int i = 0; i < 5; i++, count++)
        if (getppid() != 4711) wrong |= 64;
    for (int i = 0; i < 5; i++, count++)
        if (syscall(SYS_getppid) != 4711) wrong |= 128;
    if (wrong) printf("wrong: %d\n", wrong);
    else printf("%d\n", count);
    return wrong != 0;
}
