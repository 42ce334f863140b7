/* Starts a program from several threads at once, of which every other one has made no system call with a path before,
 * and the second time from threads in the place of those. Each child opens files first.
 *
 *     spawns THREADS TIMES PROGRAM FILE */

#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static char **given;
static int failed;

static void *start(void *known) {
    if (known) access("/no/such/file", F_OK);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    for (int i = 0; i < 10; i++) posix_spawn_file_actions_addopen(&actions, 100 + i, given[4], O_RDONLY, 0);
    char *argv[] = {given[3], NULL};
    int status = -1;
    pid_t child;
    if (posix_spawn(&child, argv[0], &actions, NULL, argv, environ) || waitpid(child, &status, 0) != child || status)
        __atomic_fetch_add(&failed, 1, __ATOMIC_RELAXED);
    posix_spawn_file_actions_destroy(&actions);
    return NULL;
}

int main(int argc, char **argv) {
    int threads = argc == 5 ? atoi(argv[1]) : 0;
    pthread_t ids[64];
    if (threads < 1 || threads > 64) return 2;
    given = argv;
    for (int times = atoi(argv[2]); times > 0; times--) {
        for (int i = 0; i < threads; i++) pthread_create(&ids[i], NULL, start, i % 2 ? argv : NULL);
        for (int i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    }
    printf("%d failed\n", failed);
    return 0;
}
