/* System calls that an extension is hooked to: the program finds everything as the kernel leaves it.
 * Prints the same in a sandbox and outside of one. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static int failures = 0;

static void check(const char *what, long got, long expected) {
    if (got == expected) return;
    printf("%s: %ld, not %ld\n", what, got, expected);
    failures++;
}

static volatile sig_atomic_t handled = 0;
static sigjmp_buf out;

static void count(int signal) { handled++; }
static void jump(int signal) { siglongjmp(out, 1); }

/* Opens a file while every signal is blocked by the handler's mask. */
static void opens(int signal) {
    int fd = open("/dev/null", O_RDONLY);
    handled += fd >= 0;
    close(fd);
}

static void install(int signal, void (*to)(int), int flags) {
    struct sigaction action = {.sa_handler = to, .sa_flags = flags};
    sigfillset(&action.sa_mask);
    check("sigaction", sigaction(signal, &action, NULL), 0);
}

static void alarm_in(long us) {
    struct itimerval when = {.it_value = {.tv_usec = us}};
    setitimer(ITIMER_REAL, &when, NULL);
}

/* A call with known values in every register that it must leave alone, and below the stack pointer. */
static long registers_kept(void) {
    long kept;
    __asm__ volatile(
        "push %%rbx\n push %%rbp\n push %%r12\n push %%r13\n push %%r14\n push %%r15\n"
        "movabs $0x1111111111111111, %%rbx\n movabs $0x2222222222222222, %%rbp\n"
        "movabs $0x3333333333333333, %%r12\n movabs $0x4444444444444444, %%r13\n"
        "movabs $0x5555555555555555, %%r14\n movabs $0x6666666666666666, %%r15\n"
        "mov $0x77, %%edi\n mov $0x88, %%esi\n mov $0x99, %%edx\n mov $0xaa, %%r10d\n"
        "mov $0xbb, %%r8d\n mov $0xcc, %%r9d\n movq %%rbx, %%xmm7\n"
        "movq $0x5a5a5a5a, -128(%%rsp)\n movq $0x3c3c3c3c, -8(%%rsp)\n"
        /* Aligned, so that the site can be patched once it has been trapped. */
        "stc\n .p2align 3\n mov %1, %%eax\n syscall\n"
        "setc %%cl\n movzbl %%cl, %%ecx\n"
        "xor %%r11d, %%r11d\n"
        "movabs $0x1111111111111111, %%rax\n cmp %%rax, %%rbx\n jne 1f\n"
        "movq %%xmm7, %%rbx\n cmp %%rax, %%rbx\n jne 1f\n"
        "movabs $0x2222222222222222, %%rax\n cmp %%rax, %%rbp\n jne 1f\n"
        "movabs $0x3333333333333333, %%rax\n cmp %%rax, %%r12\n jne 1f\n"
        "movabs $0x4444444444444444, %%rax\n cmp %%rax, %%r13\n jne 1f\n"
        "movabs $0x5555555555555555, %%rax\n cmp %%rax, %%r14\n jne 1f\n"
        "movabs $0x6666666666666666, %%rax\n cmp %%rax, %%r15\n jne 1f\n"
        "cmp $0x77, %%edi\n jne 1f\n cmp $0x88, %%esi\n jne 1f\n cmp $0x99, %%edx\n jne 1f\n"
        "cmp $0xaa, %%r10d\n jne 1f\n cmp $0xbb, %%r8d\n jne 1f\n cmp $0xcc, %%r9d\n jne 1f\n"
        "cmpq $0x5a5a5a5a, -128(%%rsp)\n jne 1f\n cmpq $0x3c3c3c3c, -8(%%rsp)\n jne 1f\n"
        "cmp $1, %%ecx\n jne 1f\n mov $1, %%r11d\n"
        "1: pop %%r15\n pop %%r14\n pop %%r13\n pop %%r12\n pop %%rbp\n pop %%rbx\n"
        "mov %%r11, %0\n"
        : "=r"(kept)
        : "i"(SYS_getppid)
        : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "xmm7", "memory", "cc");
    return kept;
}

static void *opens_often(void *unused) {
    for (int i = 0; i < 200; i++) {
        int fd = open("/dev/null", O_RDONLY);
        if (fd < 0) return (void *)1;
        close(fd);
    }
    return NULL;
}

static pthread_barrier_t together;

static void *meets(void *unused) {
    uid_t user = getuid(), effective = geteuid();
    gid_t group = getgid(), effective_group = getegid();
    long wrong = 0;
    for (int i = 0; i < 50; i++) {
        pthread_barrier_wait(&together);
        char place[256];
        wrong |= getuid() != user || geteuid() != effective;
        wrong |= getgid() != group || getegid() != effective_group;
        wrong |= !getcwd(place, sizeof place) || sched_yield() || access("/", F_OK);
        wrong |= umask(022) > 0777;
    }
    return (void *)wrong;
}

int main(void) {
    pid_t parent = getppid();
    for (int i = 0; i < 100; i++) check("registers", registers_kept(), 1);

    check("no such file", open("/no/such/file", O_RDONLY), -1);
    check("errno", errno, ENOENT);
    check("bad address", syscall(SYS_openat, AT_FDCWD, 16L, O_RDONLY), -1);
    check("errno", errno, EFAULT);

    /* Every signal blocked, SIGSYS among them. */
    sigset_t all, former, now;
    sigfillset(&all);
    check("block", sigprocmask(SIG_SETMASK, &all, &former), 0);
    check("SIGSYS blocked before", sigismember(&former, SIGSYS), 0);
    int fd = open("/dev/null", O_RDONLY);
    check("open with all blocked", fd >= 0, 1);
    close(fd);
    check("ask", sigprocmask(SIG_BLOCK, NULL, &now), 0);
    check("SIGSYS blocked", sigismember(&now, SIGSYS), 1);
    check("SIGUSR1 blocked", sigismember(&now, SIGUSR1), 1);
    check("SIGKILL blocked", sigismember(&now, SIGKILL), 0);
    check("unblock", sigprocmask(SIG_SETMASK, &former, NULL), 0);
    check("bad mask", syscall(SYS_rt_sigprocmask, SIG_BLOCK, 16L, 0L, 8L), -1);
    check("errno", errno, EFAULT);

    install(SIGUSR1, opens, 0);
    kill(getpid(), SIGUSR1);
    check("opened in a handler", handled, 1);
    handled = 0;

    /* Interrupted, and restarted. */
    int ends[2];
    char byte;
    check("pipe", pipe(ends), 0);
    install(SIGALRM, count, 0);
    alarm_in(20000);
    check("read", read(ends[0], &byte, 1), -1);
    check("errno", errno, EINTR);
    check("handled", handled, 1);
    install(SIGALRM, count, SA_RESTART);
    alarm_in(20000);
    if (!fork()) {
        usleep(80000);
        _exit(write(ends[1], "x", 1) != 1);
    }
    check("read again", read(ends[0], &byte, 1), 1);
    check("handled", handled, 2);
    int status;
    wait(&status);
    check("the writer", status, 0);

    /* Out of a call, by a jump. */
    for (int i = 0; i < 3; i++) {
        install(SIGALRM, jump, 0);
        if (!sigsetjmp(out, 1)) {
            alarm_in(10000);
            read(ends[0], &byte, 1);
            check("not reached", 1, 0);
        }
    }
    check("after jumps", open("/no/such/file", O_RDONLY), -1);

    /* Waiting with other masks. */
    install(SIGALRM, opens, 0);
    handled = 0;
    sigset_t waiting = all;
    sigdelset(&waiting, SIGALRM);
    alarm_in(10000);
    check("sigsuspend", sigsuspend(&waiting), -1);
    check("handled", handled, 1);
    struct timespec second = {.tv_sec = 1};
    alarm_in(10000);
    check("pselect", pselect(0, NULL, NULL, NULL, &second, &waiting), -1);
    check("errno", errno, EINTR);
    check("handled", handled, 2);

    /* A call that waits, and another one in a handler meanwhile: each has its own path. */
    char name[64];
    snprintf(name, sizeof name, "/tmp/sbx-exact-%d", getpid());
    check("mkfifo", mkfifo(name, 0600), 0);
    install(SIGALRM, opens, SA_RESTART);
    alarm_in(20000);
    if (!fork()) {
        usleep(100000);
        int writer = open(name, O_WRONLY);
        _exit(write(writer, "y", 1) != 1);
    }
    int reader = open(name, O_RDONLY);
    check("read from the pipe", read(reader, &byte, 1), 1);
    check("its byte", byte, 'y');
    close(reader);
    unlink(name);
    wait(&status);
    check("the other writer", status, 0);

    /* Signals at any instruction of calls, with calls in their handler. */
    install(SIGALRM, opens, SA_RESTART);
    handled = 0;
    struct itimerval often = {.it_interval = {.tv_usec = 150}, .it_value = {.tv_usec = 150}};
    setitimer(ITIMER_REAL, &often, NULL);
    for (int i = 0; i < 30000; i++) {
        int null = open("/dev/null", O_RDONLY);
        if (null < 0 || close(null) || open("/no/such/file", O_RDONLY) != -1 || errno != ENOENT) {
            check("call under signals", i, -1);
            break;
        }
        if (getppid() != parent) check("getppid under signals", getppid(), parent);
    }
    memset(&often, 0, sizeof often);
    setitimer(ITIMER_REAL, &often, NULL);
    check("signals came", handled > 10, 1);

    /* Threads that meet the same sites for the first time at the same moment. */
    pthread_barrier_init(&together, NULL, 8);
    pthread_t meet[8];
    for (int i = 0; i < 8; i++) pthread_create(&meet[i], NULL, meets, NULL);
    for (int i = 0; i < 8; i++) {
        void *failed;
        pthread_join(meet[i], &failed);
        check("at once", failed != NULL, 0);
    }

    /* Threads, and a child in the parent's memory. */
    pthread_t threads[8];
    for (int i = 0; i < 8; i++) pthread_create(&threads[i], NULL, opens_often, NULL);
    for (int i = 0; i < 8; i++) {
        void *failed;
        pthread_join(threads[i], &failed);
        check("thread", failed != NULL, 0);
    }
    pid_t child = vfork();
    if (!child) {
        int in_child = open("/dev/null", O_RDONLY);
        _exit(in_child < 0);
    }
    waitpid(child, &status, 0);
    check("vfork", status, 0);

    /* What a handler for SIGSYS is told of a signal that is none of the filter's. */
    install(SIGSYS, count, 0);
    handled = 0;
    kill(getpid(), SIGSYS);
    check("SIGSYS handled", handled, 1);
    struct sigaction found;
    sigaction(SIGSYS, NULL, &found);
    check("SIGSYS found", found.sa_handler == count, 1);
    puts(failures ? "not as without" : "as without");
    return failures != 0;
}
