// Eventfds that several processes and threads, handlers among them, count by at once: nothing is lost or counted twice.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <sys/time.h>
#include <unistd.h>

enum { WRITERS = 2, READERS = 2, WRITES = 4000 };

struct shared {
    // What each is about to write, has written, has read and is about to: of a killed one it may be one or the other.
    _Atomic uint64_t tried[WRITERS], written[WRITERS], got[READERS], reading[READERS];
    _Atomic int ended;
};

static struct shared *shared;
static int counter;
static uint64_t state;

static unsigned draw(unsigned below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned)((state >> 20) % below);
}

static void write_all(int which) {
    for (int i = 0; i < WRITES; i++) {
        uint64_t more = 1 + draw(3);
        atomic_fetch_add(&shared->tried[which], more);
        if (write(counter, &more, 8) != 8) _exit(3);
        atomic_fetch_add(&shared->written[which], more);
        if (draw(50) == 0) usleep(draw(100));
    }
    _exit(0);
}

static void read_all(int which) {
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(epoll, EPOLL_CTL_ADD, counter, &event);
    while (!atomic_load(&shared->ended)) {
        uint64_t value = 0;
        if (which ? epoll_wait(epoll, &event, 1, 5) != 1 : poll(&(struct pollfd){counter, POLLIN, 0}, 1, 5) != 1) continue;
        atomic_store(&shared->reading[which], 1);
        if (read(counter, &value, 8) == 8) atomic_fetch_add(&shared->got[which], value);
        else if (errno != EAGAIN) _exit(4);
        atomic_store(&shared->reading[which], 0);
    }
    _exit(0);
}

// Has all of it moved to the kernel, once.
static void look_at(void) {
    char path[40], text[300];
    usleep(draw(3000));
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", counter);
    int file = open(path, O_RDONLY);
    if (read(file, text, sizeof text) < 0) _exit(5);
    _exit(0);
}

static pid_t begin(void (*what)(int), int which) {
    pid_t child = fork();
    if (child == 0) {
        state += 77 * (which + 1);
        what(which);
    }
    return child;
}

static void looks(int which) {
    (void)which;
    look_at();
}

static int killed(const char *seed) {
    state = strtoull(seed, NULL, 10) * 0x9e3779b97f4a7c15 + 1;
    for (int i = 0; i < 10; i++) draw(2);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    counter = eventfd(0, EFD_NONBLOCK | EFD_SEMAPHORE);
    pid_t writers[WRITERS], readers[READERS], looker = -1;
    for (int i = 0; i < WRITERS; i++) writers[i] = begin(write_all, i);
    for (int i = 0; i < READERS; i++) readers[i] = begin(read_all, i);
    if (draw(2)) looker = begin(looks, 0);
    usleep(draw(4000));
    kill(writers[0], SIGKILL);
    if (looker > 0) {
        usleep(draw(1000));
        kill(looker, SIGKILL);
        waitpid(looker, NULL, 0);
    }
    usleep(draw(2000));
    kill(readers[0], SIGKILL);
    int status, all = 1;
    waitpid(writers[0], NULL, 0);
    waitpid(writers[1], &status, 0);
    all &= status == 0;
    atomic_store(&shared->ended, 1);
    waitpid(readers[0], NULL, 0);
    waitpid(readers[1], &status, 0);
    all &= status == 0;
    uint64_t rest = 0, value, got = 0, tried = 0, written = 0;
    while (read(counter, &value, 8) == 8) rest += value;
    for (int i = 0; i < READERS; i++) got += shared->got[i];
    for (int i = 0; i < WRITERS; i++) tried += shared->tried[i], written += shared->written[i];
    // One that the killed reader was about to be given.
    uint64_t lost = shared->reading[0];
    all &= got + rest + lost >= written && got + rest <= tried;
    if (!all) printf("%lu and %lu (%lu) of %lu to %lu\n", got, rest, lost, written, tried);
    puts(all ? "all" : "not all");
    return 0;
}

static void on_alarm(int signal) {
    (void)signal;
    uint64_t one = 1;
    int before = errno;
    if (write(counter, &one, 8) == 8) atomic_fetch_add(&shared->written[0], 1);
    errno = before;
}

static void *take(void *none) {
    (void)none;
    while (!atomic_load(&shared->ended)) {
        uint64_t value;
        if (read(counter, &value, 8) == 8) atomic_fetch_add(&shared->got[0], value);
    }
    return NULL;
}

// Handlers write to what they interrupt, and others read it.
static int handlers(void) {
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    counter = eventfd(0, 0);
    signal(SIGALRM, on_alarm);
    pthread_t reader;
    pthread_create(&reader, NULL, take, NULL);
    setitimer(ITIMER_REAL, &(struct itimerval){{0, 150}, {0, 150}}, NULL);
    uint64_t one = 1, sum = 0;
    for (int i = 0; i < 300000; i++) {
        if (write(counter, &one, 8) == 8) sum++;
    }
    setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
    atomic_store(&shared->ended, 1);
    if (write(counter, &one, 8) == 8) sum++;
    pthread_join(reader, NULL);
    // It may have ended before the last one came.
    fcntl(counter, F_SETFL, O_NONBLOCK);
    uint64_t rest = 0;
    if (read(counter, &rest, 8) != 8) rest = 0;
    int all = sum + shared->written[0] == shared->got[0] + rest;
    printf("%s\n", all && shared->written[0] > 10 ? "all" : "not all");
    return 0;
}

int main(int argc, char **argv) { return argc > 1 ? killed(argv[1]) : handlers(); }
