/* Paths at addresses where nothing is, or from time to time. Says how often the file whose path is given was opened, and
 * what was otherwise than the kernel has it. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int opened = 0, wrong = 0;
static volatile int over = 0;
static char *page;

static void fails(const char *what, long result, int with) {
    if (result == -1 && errno == with) return;
    printf("%s: %ld, %s\n", what, result, strerror(errno));
    wrong++;
}

static void *takes_it_away(void *unused) {
    while (!over) {
        mprotect(page, 4096, PROT_NONE);
        mprotect(page, 4096, PROT_READ);
    }
    return NULL;
}

static void often(const char *path) {
    for (int i = 0; i < 50000; i++) {
        int fd = open(path, O_RDONLY);
        opened += fd >= 0;
        if (fd >= 0) close(fd);
    }
}

int main(int count, char **words) {
    page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page + 4096, 4096);
    /* Up to the end of what is mapped, and no zero. */
    memset(page, 'x', 4096);
    fails("open without an end", open(page + 4090, O_RDONLY), EFAULT);
    for (int i = 0; i < 100; i++) {
        fails("open", syscall(SYS_openat, AT_FDCWD, 16L, O_RDONLY), EFAULT);
        fails("not canonical", syscall(SYS_openat, AT_FDCWD, 1L << 63 | 16, O_RDONLY), EFAULT);
        fails("rename", syscall(SYS_rename, "/dev/null", 16L), EFAULT);
        fails("stat", syscall(SYS_newfstatat, AT_FDCWD, "/", 16L, 0), EFAULT);
        fails("execve", syscall(SYS_execve, 16L, 0L, 0L), EFAULT);
        fails("write", syscall(SYS_write, 99, 16L, 8L), EBADF);
        fails("connect", syscall(SYS_connect, 99, 16L, 16L), EBADF);
    }
    /* By no path at all. */
    int null = open("/dev/null", O_WRONLY);
    if (futimens(null, NULL)) wrong++;
    if (syscall(SYS_write, null, 16L, 8L) != 8) wrong++;

    strcpy(page, words[1]);
    often(page);
    pthread_t thread;
    pthread_create(&thread, NULL, takes_it_away, NULL);
    often(page);
    over = 1;
    pthread_join(thread, NULL);
    printf("%d opened, %d wrong\n", opened, wrong);
    return 0;
}
