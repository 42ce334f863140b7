// Random steps on eventfds, by seed; prints what each came to, which depends on the seed alone.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { COUNTERS = 4, COPIES = 3, SETS = 2 };

struct counter {
    int fds[COPIES], count, nonblock, by_one;
    uint64_t sum; // what it must have, by what went in and came out
    int events[SETS], registered[SETS];
};

static struct counter counters[COUNTERS];
static uint64_t state;
static void *volatile nowhere;
static int epolls[SETS], passing[2], strangers[2], file;
static aio_context_t requests;

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

static void begin(struct counter *counter) {
    int flags = (draw(2) ? EFD_NONBLOCK : 0) | (draw(3) ? 0 : EFD_SEMAPHORE) | EFD_CLOEXEC;
    unsigned first = draw(2) ? 0 : draw(5);
    int fd = eventfd(first, flags);
    if (fd < 0) die("eventfd");
    *counter = (struct counter){.fds = {fd}, .count = 1, .nonblock = flags & EFD_NONBLOCK, .sum = first};
    counter->by_one = flags & EFD_SEMAPHORE;
    printf("eventfd %u %x: %d\n", first, flags, fd);
}

static uint64_t some(void) {
    switch (draw(160)) {
    case 0: return UINT64_MAX;
    case 1: return UINT64_MAX - 1;
    case 2: return (uint64_t)1 << (20 + draw(44));
    case 3:
    case 4: return 0;
    default: return 1 + draw(5);
    }
}

static long write_by(int fd, int how, uint64_t *values) {
    struct iovec pieces[2] = {{values, 8}, {values + 1, 8}};
    switch (how) {
    case 0: return told(writev(fd, pieces, 1));
    case 1: return told(writev(fd, pieces, 2));
    case 2: return told(pwritev2(fd, pieces, 1, -1, 0));
    case 3: return told(write(fd, values, draw(17)));
    case 4: return told(write(fd, nowhere, 8));
    default: return told(write(fd, values, 8));
    }
}

static void put(struct counter *counter, int fd) {
    uint64_t values[3] = {some(), some(), 0};
    int how = draw(12);
    uint64_t added = values[0];
    // Where there is no room it must not wait.
    uint64_t sum = counter->sum, both = added > UINT64_MAX - values[1] ? UINT64_MAX : added + values[1];
    if (!counter->nonblock && (how == 1 ? both : added) >= UINT64_MAX - 1 - sum) return;
    long result = write_by(fd, how, values);
    if (result >= 8) counter->sum += added;
    if (result == 16) counter->sum += values[1];
    printf("write %d %lx: %ld\n", how, added, result);
}

static long read_by(int fd, int how, uint64_t *value) {
    struct iovec pieces[2] = {{value, 3}, {(char *)value + 3, 5 + draw(3)}};
    switch (how) {
    case 0: return told(readv(fd, pieces, 2));
    case 1: return told(preadv2(fd, pieces, 2, -1, 0));
    case 2: return told(preadv2(fd, pieces, 2, -1, RWF_NOWAIT));
    case 3: return told(read(fd, value, draw(17)));
    default: return told(read(fd, value, 8));
    }
}

static void get(struct counter *counter, int fd) {
    uint64_t value[3] = {0};
    int how = draw(10);
    if (!counter->nonblock && counter->sum == 0) how = 2;
    long result = read_by(fd, how, value);
    if (result == 8) counter->sum -= value[0];
    printf("read %d: %ld %lx\n", how, result, result == 8 ? value[0] : 0);
}

static void look(int fd) {
    short wanted = (draw(4) ? POLLIN : 0) | (draw(3) ? 0 : POLLOUT);
    if (draw(2)) {
        struct pollfd one = {.fd = fd, .events = wanted};
        int ready = poll(&one, 1, draw(2));
        printf("poll %x: %d %x\n", wanted, ready, one.revents);
        return;
    }
    fd_set reads, writes;
    FD_ZERO(&reads);
    FD_ZERO(&writes);
    FD_SET(fd, &reads);
    if (wanted & POLLOUT) FD_SET(fd, &writes);
    struct timeval none = {0};
    int ready = select(fd + 1, &reads, &writes, NULL, &none);
    printf("select: %d %d %d\n", ready, FD_ISSET(fd, &reads), FD_ISSET(fd, &writes));
}

static int has_edge(struct counter *counter) {
    int any = 0;
    for (int i = 0; i < SETS; i++) any |= counter->registered[i] && counter->events[i] & (EPOLLET | EPOLLONESHOT);
    return any;
}

static int any_edge(void) {
    int any = 0;
    for (int i = 0; i < COUNTERS; i++) any |= has_edge(&counters[i]);
    return any;
}

static void control(int c) {
    struct counter *counter = &counters[c];
    int set = draw(30) == 0, what = 1 + draw(3);
    struct epoll_event event = {.data.u64 = 0x100000000 + c};
    if (draw(5)) event.events |= EPOLLIN;
    if (draw(60) == 0) event.events |= EPOLLOUT;
    if (draw(3) == 0) event.events |= EPOLLET;
    if (draw(6) == 0) event.events |= EPOLLONESHOT;
    // What the counter has is moved then, which is an edge for the others.
    if ((event.events & EPOLLOUT || counter->registered[!set]) && has_edge(counter)) return;
    long result = told(epoll_ctl(epolls[set], what, counter->fds[0], &event));
    if (result == 0) {
        counter->registered[set] = what != EPOLL_CTL_DEL;
        counter->events[set] = event.events;
    }
    printf("control %d %d %x: %ld\n", set, what, event.events, result);
}

static int by_data(const void *a, const void *b) {
    uint64_t x = ((struct epoll_event *)a)->data.u64, y = ((struct epoll_event *)b)->data.u64;
    return x < y ? -1 : x > y;
}

static void wait_epoll(void) {
    int set = draw(5) == 0;
    struct epoll_event events[4 * COUNTERS];
    int count = epoll_wait(epolls[set], events, 2 * COUNTERS, draw(2));
    // The kernel is not asked each time.
    usleep(40);
    int more = epoll_wait(epolls[set], events + count, 2 * COUNTERS, 0);
    for (int i = count, all = count + more; i < all; i++) {
        int same = 0;
        while (same < count && events[same].data.u64 != events[i].data.u64) same++;
        if (same == count) events[count++] = events[i];
        else events[same].events |= events[i].events;
    }
    if (count > 1) qsort(events, count, sizeof *events, by_data);
    printf("wait %d: %d", set, count);
    for (int i = 0; i < count; i++) printf(" %lx:%x", (long)events[i].data.u64, events[i].events);
    printf("\n");
}

static int through_message(int fd) {
    char control[CMSG_SPACE(sizeof fd)], byte = 1;
    struct iovec piece = {&byte, 1};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    int *way = draw(2) ? passing : strangers, got;
    if (sendmsg(way[0], &message, 0) != 1) die("sendmsg");
    message.msg_controllen = sizeof control;
    if (recvmsg(way[1], &message, 0) != 1) die("recvmsg");
    memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof got);
    return got;
}

static void copy(int c, int fd) {
    struct counter *counter = &counters[c];
    if (counter->count == COPIES) return;
    int how = draw(8), made;
    if (how == 0 && has_edge(counter)) how = 1;
    if (how == 0) made = through_message(fd);
    else if (how < 3) made = dup(fd);
    else if (how < 6) made = fcntl(fd, F_DUPFD_CLOEXEC, 100);
    else made = dup3(fd, 200 + c, O_CLOEXEC);
    printf("copy %d: %d\n", how, made);
    for (int i = 0; i < counter->count; i++)
        if (counter->fds[i] == made) return;
    if (made >= 0) counter->fds[counter->count++] = made;
}

static void let_go(struct counter *counter) {
    if (counter->count > 1) {
        printf("close: %ld\n", told(close(counter->fds[--counter->count])));
        return;
    }
    if (draw(4)) return;
    for (int i = 0; i < SETS; i++) {
        if (counter->registered[i]) epoll_ctl(epolls[i], EPOLL_CTL_DEL, counter->fds[0], NULL);
    }
    close(counter->fds[0]);
    counter->count = 0;
    printf("gone\n");
}

// The kernel's own count, which all of it has to be in by then.
static void told_of(int fd) {
    char path[40], line[100];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    FILE *file = fopen(path, "r");
    if (!file) die("fdinfo");
    unsigned long count = 0;
    while (fgets(line, sizeof line, file)) sscanf(line, "eventfd-count: %lx", &count);
    fclose(file);
    printf("told: %lx\n", count);
}

// The kernel itself adds one, and is told of the counter by name.
static void tell_when_written(struct counter *counter, int fd) {
    struct iocb one = {.aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = file, .aio_buf = (uintptr_t)&one, .aio_nbytes = 8};
    struct iocb *all[] = {&one};
    struct io_event ended;
    one.aio_flags = IOCB_FLAG_RESFD;
    one.aio_resfd = fd;
    if (syscall(SYS_io_submit, requests, 1, all) != 1) die("io_submit");
    if (syscall(SYS_io_getevents, requests, 1, 1, &ended, NULL) != 1) die("io_getevents");
    counter->sum++;
    printf("written: %ld\n", (long)ended.res);
}

static void set_mode(struct counter *counter, int fd) {
    int on = counter->nonblock = draw(2);
    long result = draw(2) ? told(ioctl(fd, FIONBIO, &on)) : told(fcntl(fd, F_SETFL, on ? O_NONBLOCK : 0));
    printf("nonblock %d: %ld %x\n", on, result, fcntl(fd, F_GETFL) & O_NONBLOCK);
}

static void *read_one(void *of) {
    int fd = *(int *)of;
    uint64_t value = 0;
    struct pollfd one = {.fd = fd, .events = POLLIN};
    while (read(fd, &value, 8) != 8) poll(&one, 1, 1000);
    return (void *)value;
}

// Another process or thread waits for what this writes.
static void for_other(struct counter *counter, int fd) {
    uint64_t more = 1 + draw(3);
    // Its first read gets all there is: which writes that has seen is not for the seed to say.
    if (counter->sum != 0 || counter->sum + more > 1000) return;
    unsigned late = draw(3) * 150;
    if (draw(2)) {
        pthread_t thread;
        void *value;
        pthread_create(&thread, NULL, read_one, &fd);
        usleep(late);
        if (write(fd, &more, 8) != 8) die("write");
        pthread_join(thread, &value);
        counter->sum += more - (uint64_t)value;
        printf("thread: %lx\n", (long)value);
        return;
    }
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) _exit((int)(long)read_one(&fd));
    usleep(late);
    if (write(fd, &more, 8) != 8) die("write");
    int status;
    waitpid(child, &status, 0);
    counter->sum += more - WEXITSTATUS(status);
    printf("child: %d\n", WEXITSTATUS(status));
}

static void step(int c) {
    struct counter *counter = &counters[c];
    if (counter->count == 0) {
        begin(counter);
        return;
    }
    int fd = counter->fds[draw(counter->count)], what = draw(100);
    if (what < 32) put(counter, fd);
    else if (what < 52) get(counter, fd);
    else if (what < 62) look(fd);
    else if (what < 72) control(c);
    else if (what < 86) wait_epoll();
    else if (what < 89) copy(c, fd);
    else if (what < 93) let_go(counter);
    else if (what < 95) set_mode(counter, fd);
    else if (what < 96) for_other(counter, fd);
    else if (what < 97 && draw(8) == 0 && !any_edge()) told_of(fd);
    else if (what < 98 && draw(8) == 0 && !has_edge(counter) && counter->sum < 1000) tell_when_written(counter, fd);
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    state = strtoull(argv[1], NULL, 10) * 0x9e3779b97f4a7c15 + 1;
    for (int i = 0; i < SETS; i++) epolls[i] = epoll_create1(EPOLL_CLOEXEC);
    file = memfd_create("written", MFD_CLOEXEC);
    if (syscall(SYS_io_setup, 1, &requests)) die("io_setup");
    if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, passing)) die("socketpair");
    struct sockaddr_un name = {};
    socklen_t len = sizeof name;
    for (int i = 0; i < 2; i++) strangers[i] = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    // A name of the kernel's choice.
    if (bind(strangers[1], &(struct sockaddr){AF_UNIX}, sizeof(sa_family_t))) die("bind");
    if (getsockname(strangers[1], (void *)&name, &len)) die("getsockname");
    if (connect(strangers[0], (void *)&name, len)) die("connect");
    for (long i = 0; i < atol(argv[2]); i++) {
        int c = draw(COUNTERS);
        printf("%ld c%d ", i, c);
        step(c);
        printf("\n");
    }
    return 0;
}
