/* Paths that are none, too long, relative to all that a path can be relative to. Prints what the kernel says
 * of each; argv[1] is an empty folder. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void said(const char *what, long result) {
    printf("%s: %s\n", what, result ? strerror(errno) : "done");
}

/* Fails in the ways that paths can, by a call that takes one. */
static void opens(const char *what, const char *path) {
    int fd = open(path, O_RDONLY);
    said(what, fd < 0);
    if (fd >= 0) close(fd);
}

int main(int argc, char **argv) {
    if (argc != 2 || chdir(argv[1])) return 2;
    char *page = mmap(NULL, 12288, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page + 8192, 4096);
    opens("none", NULL);
    opens("nowhere", page + 8192);
    opens("empty", "");
    memset(page, '/', 8192);
    opens("without an end", page + 8000);
    opens("longer than any", page);
    page[4095] = 0;
    opens("as long as can be", page);
    page[4095] = '/';
    page[8191] = 0;
    opens("one too long", page + 8191 - 4096);
    opens("up to the last byte", page + 8191 - 5);
    said("mkdir", mkdir("a", 0700));
    said("create", close(open("a/f", O_CREAT | O_WRONLY, 0600)));
    int folder = open("a", O_RDONLY | O_DIRECTORY), file = openat(folder, "f", O_RDONLY);
    said("below a descriptor", file < 0);
    struct stat stat;
    said("of a descriptor", fstatat(file, "", &stat, AT_EMPTY_PATH));
    said("its times", syscall(SYS_utimensat, file, NULL, NULL, 0));
    said("below a file", openat(file, "f", O_RDONLY) < 0);
    said("below none", openat(77, "f", O_RDONLY) < 0);
    said("absolute, below none", openat(77, "/dev/null", O_RDONLY) < 0);
    said("out and in again", renameat(folder, "../a/f", folder, "./g"));
    said("gone", faccessat(folder, "f", F_OK, 0));
    said("there", faccessat(AT_FDCWD, "a/../a//g", F_OK, 0));
    int watch = inotify_init1(IN_CLOEXEC);
    said("watched", inotify_add_watch(watch, "a", IN_CREATE) < 0);
    said("a link", symlinkat("nowhere/at/all", folder, "l"));
    char to[64];
    said("read", readlinkat(folder, "l", to, sizeof to) < 0);
    said("a folder of its own", mkdir("b", 0700) || chdir("b") || rmdir("../b"));
    opens("in what is gone", "f");
    opens("above what is gone", "../a/g");
    said("out of it", chdir(argv[1]));
    pid_t child = vfork();
    if (child == 0) {
        execl("a/none", "none", NULL);
        if (chdir("a")) _exit(2);
        execl("/bin/cat", "cat", "g", NULL);
        _exit(1);
    }
    int status;
    said("a child", waitpid(child, &status, 0) != child || status);
    said("the end", unlink("a/g") || unlink("a/l") || rmdir("a"));
    return 0;
}
