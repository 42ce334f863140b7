/* A file that comes and goes while another thread asks whether it is there; a socket that is bound. Says how often the
 * answer was that of before. */

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static char path[128];
static volatile int over = 0;

static int is_there(void) {
    struct stat found;
    return !stat(path, &found);
}

static void *asks(void *unused) {
    while (!over) is_there();
    return NULL;
}

int main(int count, char **words) {
    int wrong = 0;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s/socket", words[1]);
    snprintf(path, sizeof path, "%s", address.sun_path);
    wrong += is_there();
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(fd, (struct sockaddr *)&address, sizeof address)) return 1;
    wrong += !is_there();
    close(fd);

    snprintf(path, sizeof path, "%s/file", words[1]);
    pthread_t thread;
    pthread_create(&thread, NULL, asks, NULL);
    for (int i = 0; i < 20000; i++) {
        close(open(path, O_CREAT | O_WRONLY, 0600));
        wrong += !is_there();
        unlink(path);
        wrong += is_there();
    }
    over = 1;
    pthread_join(thread, NULL);
    printf("%d wrong\n", wrong);
    return 0;
}
