/* Three children of vfork that each remove a folder that is not there five times, in a process that cannot look into
 * /proc: without a free descriptor, or in the folder that is named, as its root. */

#define _GNU_SOURCE
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct rlimit none = {3, 3};
    int status;
    if (argc > 1 ? chroot(argv[1]) : setrlimit(RLIMIT_NOFILE, &none)) return 2;
    for (int i = 0; i < 3; i++) {
        pid_t child = vfork();
        if (!child) {
            for (int k = 0; k < 5; k++) rmdir("/no/such/folder");
            _exit(0);
        }
        if (waitpid(child, &status, 0) != child || status) return 3;
    }
    return 0;
}
