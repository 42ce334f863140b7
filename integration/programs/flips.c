/* Opens a path while another thread changes it: argv[1] has folders "open" and "shut", each with a file
 * "f". Prints how often what it opened was open/f, shut/f, and refused. */

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static char path[4096];
static char *word;
static atomic_int done;

static void *flip(void *nothing) {
    (void)nothing;
    while (!atomic_load(&done)) {
        for (int i = 0; i < 4; i++) ((volatile char *)word)[i] = "shut"[i];
        for (int i = 0; i < 4; i++) ((volatile char *)word)[i] = "open"[i];
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 2 || chdir(argv[1])) return 2;
    int is_relative = argv[1][0] != '/';
    int len = snprintf(path, sizeof path, "%s/", is_relative ? "." : argv[1]);
    word = path + len;
    strcpy(word, "open/f");
    pthread_t flipper;
    pthread_create(&flipper, NULL, flip, NULL);
    int open_seen = 0, shut_seen = 0, refused = 0;
    for (int i = 0; i < 60000; i++) {
        int fd = open(path, O_RDONLY);
        if (fd < 0) {
            refused += errno == EACCES;
            continue;
        }
        char byte = 0;
        if (read(fd, &byte, 1) == 1) *(byte == 's' ? &shut_seen : &open_seen) += 1;
        close(fd);
    }
    atomic_store(&done, 1);
    pthread_join(flipper, NULL);
    printf("%d %d %d\n", open_seen, shut_seen, refused);
    return 0;
}
