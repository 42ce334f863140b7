// Event loops that wake each other as those of mio and tokio do: an eventfd in each one's epoll instance, for edges
// (EPOLLET), which is written to and never read, or only now and then. Messages hop from loop to loop; where to depends
// on the message alone. Prints how many came to each.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { LOOPS = 6, MESSAGES = 40, EVENTS = 4, LIMIT_S = 60 };

struct message {
    uint64_t state;
    int hops;
};

struct loop {
    pthread_t thread;
    pthread_mutex_t lock;
    struct message waiting[MESSAGES];
    int count, epoll, waker, reads;
    long heard;
};

static struct loop loops[LOOPS];
static _Atomic int left = MESSAGES;

static void wake(struct loop *loop) {
    uint64_t one = 1;
    if (write(loop->waker, &one, sizeof one) != sizeof one) exit(2);
}

static void pass_on(struct message message) {
    if (message.hops == 0) {
        if (--left == 0)
            for (int i = 0; i < LOOPS; i++) wake(&loops[i]);
        return;
    }
    message.hops--;
    message.state = message.state * 6364136223846793005 + 1442695040888963407;
    struct loop *to = &loops[(message.state >> 33) % LOOPS];
    pthread_mutex_lock(&to->lock);
    to->waiting[to->count++] = message;
    pthread_mutex_unlock(&to->lock);
    wake(to);
}

static void *run(void *of) {
    struct loop *loop = of;
    while (left) {
        struct epoll_event events[EVENTS];
        if (epoll_wait(loop->epoll, events, EVENTS, -1) != 1) exit(3);
        uint64_t sum;
        if (loop->reads && read(loop->waker, &sum, sizeof sum) < 0) exit(4);
        struct message taken[MESSAGES];
        pthread_mutex_lock(&loop->lock);
        int count = loop->count;
        for (int i = 0; i < count; i++) taken[i] = loop->waiting[i];
        loop->count = 0;
        pthread_mutex_unlock(&loop->lock);
        for (int i = 0; i < count; i++) pass_on(taken[i]);
        loop->heard += count;
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 2) return 1;
    alarm(LIMIT_S);
    for (int i = 0; i < LOOPS; i++) {
        struct loop *loop = &loops[i];
        loop->reads = i % 3 == 0;
        loop->epoll = epoll_create1(EPOLL_CLOEXEC);
        loop->waker = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        pthread_mutex_init(&loop->lock, NULL);
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.u64 = UINT64_MAX};
        if (epoll_ctl(loop->epoll, EPOLL_CTL_ADD, loop->waker, &event)) return 1;
    }
    for (int i = 0; i < MESSAGES; i++) pass_on((struct message){.state = i, .hops = atoi(argv[1])});
    for (int i = 0; i < LOOPS; i++) pthread_create(&loops[i].thread, NULL, run, &loops[i]);
    for (int i = 0; i < LOOPS; i++) pthread_join(loops[i].thread, NULL);
    for (int i = 0; i < LOOPS; i++) printf("%ld\n", loops[i].heard);
    return 0;
}
