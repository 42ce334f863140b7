// A thread sleeps on an epoll instance while another changes what it is to be woken for. Prints what it is woken by.
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LIMIT_MS = 5000, ASLEEP_US = 30000 };
enum change { THERE, LATER, ROOM, AGAIN, EDGE, ADDED, CHANGES };

static const char *const names[] = {"bytes that are there", "bytes that come later", "room to write",
                                    "once more", "an edge", "one that is added"};

struct waiting {
    int epoll, count;
    struct epoll_event event;
};

static void *wait_for_one(void *of) {
    struct waiting *waiting = of;
    waiting->count = epoll_wait(waiting->epoll, &waiting->event, 1, LIMIT_MS);
    return NULL;
}

static void put(int fd) {
    char bytes[8] = {1};
    if (write(fd, bytes, sizeof bytes) != sizeof bytes) exit(2);
}

static void control(int epoll, int what, int fd, unsigned events) {
    struct epoll_event event = {.events = events, .data.u32 = 7};
    if (epoll_ctl(epoll, what, fd, &event)) exit(3);
}

static void change(const char *kind, int reader, int writer, enum change change) {
    struct waiting waiting = {.epoll = epoll_create1(EPOLL_CLOEXEC)};
    unsigned mode = change == AGAIN ? EPOLLONESHOT : change == EDGE ? EPOLLET : 0;
    // As the first to wait learns of it, who writes from then on takes it to be awake.
    if (change != ADDED) control(waiting.epoll, EPOLL_CTL_ADD, reader, change == AGAIN ? EPOLLIN | mode : 0);
    if (change != LATER && change != ROOM) put(writer);
    if (change == AGAIN && (wait_for_one(&waiting), waiting.count != 1)) exit(4);
    pthread_t thread;
    pthread_create(&thread, NULL, wait_for_one, &waiting);
    usleep(ASLEEP_US);
    unsigned wanted = (change == ROOM ? EPOLLOUT : EPOLLIN) | mode;
    control(waiting.epoll, change == ADDED ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, reader, wanted);
    if (change == LATER) {
        usleep(ASLEEP_US);
        put(writer);
    }
    pthread_join(thread, NULL);
    printf("%s, %s: %d %x %d\n", kind, names[change], waiting.count, waiting.event.events, waiting.event.data.u32);
    close(waiting.epoll);
    close(reader);
    if (writer != reader) close(writer);
}

int main(void) {
    for (enum change which = 0; which < CHANGES; which++) {
        int types[] = {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM}, made[2];
        for (int i = 0; i < 3; i++) {
            if (socketpair(AF_UNIX, types[i], 0, made)) return 1;
            change("pair", made[0], made[1], which);
        }
        if (which != ROOM) {
            if (pipe(made)) return 1;
            change("pipe", made[0], made[1], which);
        }
        int counter = eventfd(0, 0);
        change("eventfd", counter, counter, which);
    }
    return 0;
}
