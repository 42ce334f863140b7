/* Has something of an extension fail in a place where that is hard to contain, and says how it ended.
 *
 *     PLACE HANDLER [WORD]    an upcall
 *     PLACE CALL              getpgid(CALL), which the extension is asked about; 9000000, no pid, is answered with 77
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sbx.h"

static sbx_t sbx;
static const char *handler;
static uint64_t word;
static long number;

/* The status of an upcall, tried again while its extension restarts. */
static uint32_t upcall(const char *name, uint64_t value) {
    uint64_t words[1] = {value};
    sbx_reply reply = {0};
    uint32_t status;
    const uint64_t handle = sbx_find(&sbx, name);
    while ((status = sbx_call(&sbx, handle, words, &reply)) == 22) usleep(1000);
    return status;
}

static void fail(void) {
    if (handler) {
        printf("%s %u\n", handler, upcall(handler, word));
    } else {
        while (getpgid(9000000) != 77) usleep(1000);
        pid_t answer = getpgid(number);
        printf("asked %d\n", answer < 0 ? -errno : answer);
    }
}

/* One that does not fail. */
static void make_context(void) {
    if (handler) upcall("hello.add", 1);
    else getpgid(0);
}

static void on_signal(int signal) {
    (void)signal;
    fail();
}

static void on_signal_once(int signal) {
    (void)signal;
    make_context();
}

static void in_handler(int flags, int mask_all, void (*handle)(int)) {
    struct sigaction action = {.sa_handler = handle, .sa_flags = flags};
    if (mask_all) sigfillset(&action.sa_mask);
    sigaction(SIGUSR1, &action, NULL);
    raise(SIGUSR1);
}

/* Alternate stacks of the program's own, in the middle of a room whose other bytes nobody may write to. */
static char room[256 << 10];
static char *const alternate = room + (128 << 10);

static void have_alternate(size_t len, int flags) {
    stack_t stack = {.ss_sp = alternate, .ss_size = len, .ss_flags = flags}, now;
    memset(room, 0x5a, alternate - room);
    sigaltstack(&stack, NULL);
    sigaltstack(NULL, &now);
    if (flags ? now.ss_flags != flags : now.ss_sp != alternate || now.ss_size != len) printf("other stack\n");
}

static void look_below_alternate(void) {
    for (const char *at = room; at < alternate; at++)
        if (*at != 0x5a) {
            printf("written to\n");
            return;
        }
}

static void use_much(int signal) {
    volatile char much[100 << 10];
    for (size_t at = 0; at < sizeof much; at += 512) much[at] = (char)signal;
    printf("much %d\n", much[512] == signal);
}

static void *in_thread(void *unused) {
    fail();
    return unused;
}

static void *after_handler(void *unused) {
    in_handler(0, 0, on_signal_once);
    fail();
    return unused;
}

static void *after_main(void *unused) {
    struct sigaction action = {.sa_handler = on_signal};
    struct timespec moment = {0, 1000};
    sigset_t none;
    usleep(100000);
    sigemptyset(&none);
    printf("%d ", pthread_sigmask(SIG_BLOCK, &none, NULL));
    printf("%d ", sigaction(SIGUSR2, &action, NULL));
    printf("%d ", ppoll(NULL, 0, &moment, &none));
    printf("%d\n", pselect(0, NULL, NULL, NULL, &moment, &none));
    exit(0);
    return unused;
}

/* From here on some calls end the program, which it would not make itself any more: opening files, asking for their
 * state, changing the access to memory. */
static void restrict_itself(void) {
    static const int refused[] = {SYS_openat, SYS_newfstatat, SYS_ioctl, SYS_mprotect, SYS_membarrier};
    enum { COUNT = sizeof refused / sizeof *refused };
    struct sock_filter code[3 + COUNT] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0)};
    for (int at = 0; at < COUNT; at++)
        code[1 + at] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, refused[at], COUNT - at, 0);
    code[1 + COUNT] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    code[2 + COUNT] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    struct sock_fprog program = {3 + COUNT, code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (number % 2 ? prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)
                   : syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
        printf("no filter\n");
}

static void thread(void *(*run)(void *)) {
    pthread_t id;
    pthread_create(&id, NULL, run, NULL);
    pthread_join(id, NULL);
}

int main(int argc, char **argv) {
    const char *place = argv[1];
    sigset_t all;
    if (argc < 3) return 2;
    setvbuf(stdout, NULL, _IONBF, 0);
    sigfillset(&all);
    number = strtol(argv[2], NULL, 10);
    handler = number ? NULL : argv[2];
    word = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
    if (handler && sbx_current(&sbx) != 0) return 3;
    if (!strcmp(place, "blocked")) {
        make_context();
        pthread_sigmask(SIG_SETMASK, &all, NULL);
        fail();
    } else if (!strcmp(place, "masked")) {
        make_context();
        in_handler(0, 1, on_signal);
    } else if (!strcmp(place, "alternate")) {
        have_alternate(16384, 0);
        make_context();
        in_handler(SA_ONSTACK, 0, on_signal);
        in_handler(SA_ONSTACK, 0, on_signal);
        look_below_alternate();
        fail();
    } else if (!strcmp(place, "go-alternate")) {
        /* Where Go has its heap, and the stacks for signals in it. */
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
        stack_t stack = {.ss_size = 32768};
        stack.ss_sp = mmap((void *)0xc000000000, stack.ss_size, PROT_READ | PROT_WRITE, flags, -1, 0);
        sigaltstack(&stack, NULL);
        make_context();
        in_handler(SA_ONSTACK, 0, on_signal);
        in_handler(SA_ONSTACK, 0, on_signal);
        fail();
    } else if (!strcmp(place, "no-alternate")) {
        make_context();
        in_handler(SA_ONSTACK, 0, on_signal);
        fail();
    } else if (!strcmp(place, "small")) {
        have_alternate(4096, 0);
        make_context();
        fail();
        have_alternate(2048, 0);
        fail();
        look_below_alternate();
    } else if (!strcmp(place, "disarmed")) {
        have_alternate(65536, 0);
        make_context();
        have_alternate(0, SS_DISABLE);
        fail();
        have_alternate(65536, 0);
        have_alternate(0, SS_DISABLE);
        fail();
    } else if (!strcmp(place, "much")) {
        make_context();
        in_handler(SA_ONSTACK, 0, use_much);
        fail();
    } else if (!strcmp(place, "thread")) {
        thread(in_thread);
    } else if (!strcmp(place, "after-handler")) {
        thread(after_handler);
    } else if (!strcmp(place, "after-main")) {
        pthread_t id;
        pthread_create(&id, NULL, after_main, NULL);
        pthread_exit(NULL);
    } else if (!strcmp(place, "vfork")) {
        int status;
        make_context();
        if (vfork() == 0) {
            fail();
            _exit(4);
        }
        wait(&status);
        printf("%d\n", WEXITSTATUS(status));
        fail();
    } else if (!strcmp(place, "unqueued")) {
        const struct rlimit none = {0, 0};
        setrlimit(RLIMIT_SIGPENDING, &none);
        printf("works %u\n", upcall("faulty.work", 20000000));
        fail();
    } else if (!strcmp(place, "no-new-code")) {
        enum { SET_MDWE = 65 };
        if (prctl(SET_MDWE, 1, 0, 0, 0) != 0) printf("no such prctl\n");
        for (int i = 0; i < 5; i++) getppid(), getuid(), getsid(0);
        fail();
    } else if (!strcmp(place, "restricted")) {
        make_context();
        restrict_itself();
        for (int i = 0; i < 5; i++) getppid(), getuid(), getsid(0);
        fail();
    } else {
        return 5;
    }
    printf("end\n");
    return 0;
}
