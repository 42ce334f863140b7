/* Execs that fail, in all ways, in the folder that is given; what follows each of them is as ever: descriptors, and
 * children, which open the file that is given. Prints the same in a sandbox and outside of one. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static const char *secret;

static void put(const char *name, const char *text, int mode) {
    int fd = open(name, O_CREAT | O_WRONLY | O_TRUNC, 0700);
    if (fd < 0 || write(fd, text, strlen(text)) < 0 || chmod(name, mode)) perror(name);
    close(fd);
}

/* What an exec has returned; which descriptor is the next; what a child may open. */
static void failed(const char *what, long result) {
    int error = errno, next = open("/dev/null", O_RDONLY), status;
    close(next);
    fflush(stdout);
    if (!fork()) _exit(open(secret, O_RDONLY) >= 0);
    wait(&status);
    printf("%s: %ld, %s; next %d, child %x\n", what, result, strerror(error), next, status);
}

#define EXEC(...) failed(#__VA_ARGS__, syscall(__VA_ARGS__))

static volatile int begun = 0, done = 0;

static void handles(int signal) {
    begun++;
    for (int i = 0; i < 3; i++) getppid();
    done++;
}

/* Signals that come while an exec fails are handled, as a whole, and blocked no longer than that. */
static void under_signals(char **args) {
    struct sigaction action = {.sa_handler = handles, .sa_flags = SA_RESTART};
    struct itimerval often = {.it_interval = {.tv_usec = 150}, .it_value = {.tv_usec = 150}}, never = {0};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    int wrong = 0;
    for (int i = 0; i < 300; i++) {
        sigset_t blocked;
        wrong += execve("junk", args, environ) != -1 || errno != ENOEXEC;
        wrong += sigprocmask(SIG_BLOCK, NULL, &blocked) || sigismember(&blocked, SIGALRM);
        wrong += begun != done;
    }
    setitimer(ITIMER_REAL, &never, NULL);
    printf("%d wrong under signals, some handled: %d\n", wrong, done > 10);
}

int main(int count, char **words) {
    char *args[] = {"x", NULL}, *bad[] = {"x", (char *)16, NULL}, *hello[] = {"echo", "hello", NULL};
    if (chdir(words[1])) return 1;
    secret = words[2];
    put("empty", "", 0755);
    put("junk", "\1\2\3 no program of any kind", 0755);
    put("elf", "\177ELF and no more", 0755);
    put("plain", "#!/bin/sh\n", 0644);
    put("loop", "#!./loop\n", 0755);
    put("lost", "#!/no/such/interpreter\n", 0755);
    put("folder-for-one", "#!/tmp\n", 0755);
    put("busy", "", 0755);
    put("script", "#!/bin/sh\necho script $1\n", 0755);
    if (mkdir("folder", 0755) || symlink("itself", "itself") || symlink("/bin/true", "link")) return 1;

    char *names[] = {"empty", "junk",   "elf",    "plain", "loop",         "lost", "folder-for-one",
                     "folder", "itself", "nowhere", "",     "empty/nothing"};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        failed(names[i], execve(names[i], args, environ));
    int busy = open("busy", O_WRONLY);
    EXEC(SYS_execve, "busy", args, environ);
    close(busy);

    int many = 400000;
    char **too_many = malloc(sizeof(char *) * (many + 1)), *long_name = malloc(200000);
    for (int i = 0; i < many; i++) too_many[i] = "an argument of some length";
    too_many[many] = NULL;
    memset(long_name, 'a', 199999);
    long_name[199999] = 0;
    EXEC(SYS_execve, "/bin/true", too_many, environ);
    EXEC(SYS_execve, "/bin/true", ((char *[]){long_name, NULL}), environ);
    EXEC(SYS_execve, long_name, args, environ);
    EXEC(SYS_execve, "/bin/true", 16L, environ);
    EXEC(SYS_execve, "/bin/true", bad, environ);
    EXEC(SYS_execve, "/bin/true", args, 16L);
    EXEC(SYS_execve, 16L, args, environ);
    int here = open(".", O_RDONLY | O_CLOEXEC), script = open("script", O_RDONLY | O_CLOEXEC);
    EXEC(SYS_execveat, AT_FDCWD, "/bin/true", args, environ, 0x8000L);
    EXEC(SYS_execveat, AT_FDCWD, "link", args, environ, AT_SYMLINK_NOFOLLOW);
    EXEC(SYS_execveat, 99, "", args, environ, AT_EMPTY_PATH);
    EXEC(SYS_execveat, here, "nowhere", args, environ, 0L);
    EXEC(SYS_execveat, here, "", args, environ, AT_EMPTY_PATH);
    EXEC(SYS_execveat, script, "", args, environ, AT_EMPTY_PATH);

    under_signals(args);

    /* One that fails, and one that does not, right behind it: in a child, in one of vfork, and from descriptors. */
    int echo = open("/bin/echo", O_PATH | O_CLOEXEC), status;
    for (int way = 0; way < 3; way++) {
        fflush(stdout);
        pid_t child = way == 1 ? vfork() : fork();
        if (!child) {
            execve("junk", args, environ);
            if (way == 2) syscall(SYS_execveat, echo, "", hello, environ, AT_EMPTY_PATH);
            execve("script", (char *[]){"script", "one", NULL}, environ);
            _exit(99);
        }
        waitpid(child, &status, 0);
        printf("child: %x\n", status);
    }
    return 0;
}
