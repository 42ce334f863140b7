/* Starts programs by children that run in its memory for a while, and do something there first: to their signal
 * actions as well, which are not their parent's. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static void fault(int signal) { _exit(signal); }

int main(void) {
    struct sigaction action = {.sa_handler = fault}, now;
    sigaction(SIGSEGV, &action, NULL);
    char *argv[] = {"/bin/true", NULL};
    int status, wrong = 0;
    for (int i = 0; i < 5; i++) {
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_addopen(&actions, 7, "/etc/hostname", O_RDONLY, 0);
        posix_spawn_file_actions_adddup2(&actions, 7, 8);
        posix_spawn_file_actions_addclose(&actions, 7);
        pid_t child;
        if (posix_spawn(&child, argv[0], &actions, NULL, argv, environ)) return 1;
        if (waitpid(child, &status, 0) != child || status) wrong = 1;
        posix_spawn_file_actions_destroy(&actions);
        child = vfork();
        if (!child) {
            int fd = open("/etc/hostname", O_RDONLY);
            dup2(fd, 9);
            close(fd);
            signal(SIGSEGV, SIG_IGN);
            execv(argv[0], argv);
            _exit(1);
        }
        if (waitpid(child, &status, 0) != child || status) wrong = 1;
        if (getppid() <= 0) wrong = 1;
    }
    sigaction(SIGSEGV, NULL, &now);
    if (now.sa_handler != fault) wrong = 1;
    puts(wrong ? "wrong" : "all started");
    return wrong;
}
