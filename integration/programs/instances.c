// Random steps on what is in several epoll instances at once, by seed; prints what each came to, which depends on the
// seed alone: now and then threads sleep on two instances while something changes.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

// The last instance has others in it, and no links.
enum { LINKS = 3, SETS = 4, OUTER = SETS - 1, MOST = 8, UNDER_WAY = 3000, SLEEP_MS = 100, SOON_US = 500 };

struct link {
    int kind; // 0 none; 1 a pair of streams, 2 of records, 3 of datagrams, 4 a pipe, 5 TCP, 6 TCP that connects later, 7 UDP
    int reader, writer, under_way;
    int listener; // until it is connected
    int registered[SETS];
};

struct sleeper {
    int set, count;
    volatile int tid; // -1 when it has come back
    struct epoll_event events[MOST];
    pthread_t thread;
};

static struct link links[LINKS];
static uint64_t state;
static int epolls[SETS], nested[SETS];
static char bytes[UNDER_WAY];

static unsigned draw(unsigned below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned)((state >> 20) % below);
}

static long told(long result) { return result < 0 ? -errno : result; }

static void die(const char *what) {
    perror(what);
    exit(2);
}

static int bound(int type, struct sockaddr_in *at) {
    socklen_t len = sizeof *at;
    int fd = socket(AF_INET, type | SOCK_NONBLOCK, 0);
    *at = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (fd < 0 || bind(fd, (void *)at, len) || getsockname(fd, (void *)at, &len)) die("bind");
    return fd;
}

static void join(struct link *link) {
    struct sockaddr_in at;
    socklen_t len = sizeof at;
    if (getsockname(link->listener, (void *)&at, &len)) die("getsockname");
    if (connect(link->reader, (void *)&at, len) && errno != EINPROGRESS) die("connect");
    while ((link->writer = accept4(link->listener, NULL, NULL, SOCK_NONBLOCK)) < 0 && errno == EAGAIN) usleep(100);
    if (link->writer < 0) die("accept");
    // Otherwise the kernel holds bytes back until others are acknowledged.
    int on = 1;
    setsockopt(link->writer, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    close(link->listener);
    link->listener = -1;
    usleep(200);
}

static void open_link(struct link *link) {
    int kind = 1 + draw(7), made[2] = {-1, -1}, types[] = {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM};
    *link = (struct link){.kind = kind, .listener = -1};
    struct sockaddr_in at, other;
    if (kind < 4 && socketpair(AF_UNIX, types[kind - 1] | SOCK_NONBLOCK, 0, made)) die("socketpair");
    if (kind == 4 && pipe2(made, O_NONBLOCK)) die("pipe");
    if (kind == 5 || kind == 6) {
        link->listener = bound(SOCK_STREAM, &at);
        if (listen(link->listener, 1)) die("listen");
        made[0] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    }
    if (kind == 7) {
        made[0] = bound(SOCK_DGRAM, &at), made[1] = bound(SOCK_DGRAM, &other);
        if (connect(made[0], (void *)&other, sizeof other) || connect(made[1], (void *)&at, sizeof at)) die("connect");
    }
    link->reader = made[0], link->writer = made[1];
    if (kind == 5) join(link);
    printf("open %d: %d", kind, made[0]);
}

static void close_link(struct link *link) {
    for (int i = 0; i < SETS; i++)
        if (link->registered[i]) epoll_ctl(epolls[i], EPOLL_CTL_DEL, link->reader, NULL);
    while (read(link->reader, bytes, sizeof bytes) > 0) {}
    close(link->reader);
    if (link->writer >= 0) close(link->writer);
    if (link->listener >= 0) close(link->listener);
    link->kind = 0;
    printf("closed");
}

static void put(struct link *link) {
    int len = 1 + draw(200);
    if (link->listener >= 0) {
        join(link);
        printf("joined ");
    }
    if (link->under_way + len > UNDER_WAY) return;
    memset(bytes, 'a' + draw(26), len);
    long sent = told(write(link->writer, bytes, len));
    if (sent > 0) link->under_way += sent;
    printf("write %d: %ld", len, sent);
}

// All that there is, or a part.
static void get(struct link *link) {
    int is_all = draw(3), most = is_all ? UNDER_WAY : 1 + draw(100);
    unsigned sum = 1;
    long got, done = 0;
    while ((got = read(link->reader, bytes, most)) > 0) {
        for (long i = 0; i < got; i++) sum = sum * 31 + bytes[i];
        done += got;
        if (!is_all) break;
    }
    link->under_way -= done;
    // Of a record, what there was no room for is gone.
    printf("read %d: %ld %u, %ld", most, done, sum, got > 0 ? 0 : told(got));
}

static void control(struct link *link) {
    int set = draw(OUTER), what = link->registered[set] ? draw(4) ? EPOLL_CTL_MOD : EPOLL_CTL_DEL : EPOLL_CTL_ADD;
    unsigned modes[] = {0, 0, EPOLLET, EPOLLONESHOT, EPOLLET | EPOLLONESHOT};
    struct epoll_event event = {.events = (draw(6) ? EPOLLIN : 0) | modes[draw(5)], .data.u64 = 100 + (link - links)};
    // One that is not connected has ended, to the kernel.
    if (link->listener >= 0 && draw(2)) event.events = 0;
    long result = told(epoll_ctl(epolls[set], what, link->reader, &event));
    if (result == 0) link->registered[set] = what != EPOLL_CTL_DEL;
    printf("control %d %d %x: %ld", set, what, event.events, result);
}

static void nest(void) {
    int set = draw(OUTER), what = nested[set] ? draw(2) ? EPOLL_CTL_DEL : EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 200 + set};
    long result = told(epoll_ctl(epolls[OUTER], what, epolls[set], &event));
    if (result == 0) nested[set] = what != EPOLL_CTL_DEL;
    printf("nest %d %d: %ld", set, what, result);
}

static int by_data(const void *a, const void *b) {
    uint64_t x = ((struct epoll_event *)a)->data.u64, y = ((struct epoll_event *)b)->data.u64;
    return x < y ? -1 : x > y;
}

static void say(int set, int count, struct epoll_event *events) {
    if (count > 1) qsort(events, count, sizeof *events, by_data);
    printf(" wait %d: %d", set, count);
    for (int i = 0; i < count; i++) printf(" %lx:%x", (long)events[i].data.u64, events[i].events);
}

static void wait_for(int set) {
    struct epoll_event events[2 * MOST], later[MOST];
    int count = epoll_wait(epolls[set], events, MOST, 0);
    // What only the kernel knows may come a little later.
    usleep(40);
    int more = epoll_wait(epolls[set], later, MOST, 0);
    for (int i = 0; i < more; i++) {
        int same = 0;
        while (same < count && events[same].data.u64 != later[i].data.u64) same++;
        if (same == count) events[count++] = later[i];
        else events[same].events |= later[i].events;
    }
    say(set, count, events);
}

static void *sleep_on(void *of) {
    struct sleeper *sleeper = of;
    sleeper->tid = gettid();
    sleeper->count = epoll_wait(epolls[sleeper->set], sleeper->events, MOST, SLEEP_MS);
    sleeper->tid = -1;
    return NULL;
}

// Does it sleep for what is to come, or has it come back?
static int is_through(struct sleeper *sleeper) {
    char path[40], text[200] = {}, *state;
    int tid = sleeper->tid, file;
    if (tid <= 0) return tid < 0;
    sprintf(path, "/proc/self/task/%d/stat", tid);
    if ((file = open(path, O_RDONLY)) < 0) return 1;
    if (read(file, text, sizeof text - 1) < 0) sleeper->tid = -1;
    close(file);
    return sleeper->tid < 0 || ((state = strrchr(text, ')')) && state[2] == 'S');
}

// Two threads sleep while something happens.
static void sleep_while(struct link *link) {
    // Who sleeps on the last would be told of what another takes meanwhile.
    int first = draw(SETS), count = first < OUTER - 1 ? 1 + draw(2) : 1;
    struct sleeper sleepers[2];
    for (int i = 0; i < count; i++) {
        sleepers[i] = (struct sleeper){.set = (first + i) % SETS};
        pthread_create(&sleepers[i].thread, NULL, sleep_on, &sleepers[i]);
    }
    for (int i = 0; i < count; i++)
        do usleep(SOON_US);
        while (!is_through(&sleepers[i]));
    if (draw(2)) put(link);
    else control(link);
    for (int i = 0; i < count; i++) pthread_join(sleepers[i].thread, NULL);
    for (int i = 0; i < count; i++) say(sleepers[i].set, sleepers[i].count, sleepers[i].events);
}

static void look(void) {
    int set = draw(OUTER);
    struct pollfd one = {.fd = epolls[set], .events = POLLIN};
    printf("poll %d: %d", set, poll(&one, 1, 0));
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    state = strtoull(argv[1], NULL, 10) * 0x9e3779b97f4a7c15 + 1;
    for (int i = 0; i < SETS; i++) epolls[i] = epoll_create1(EPOLL_CLOEXEC);
    for (long steps = atol(argv[2]); steps > 0; steps--) {
        int which = draw(LINKS), what = draw(100);
        struct link *link = &links[which];
        printf("%ld link %d ", steps, which);
        if (!link->kind) open_link(link);
        else if (what < 25) put(link);
        else if (what < 45) get(link);
        else if (what < 65) control(link);
        else if (what < 85) wait_for(draw(SETS));
        else if (what < 89) look();
        else if (what < 92) nest();
        else if (what < 97) sleep_while(link);
        else if (what < 99) close_link(link);
        printf("\n");
    }
    return 0;
}
