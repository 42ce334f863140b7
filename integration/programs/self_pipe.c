// Signal handlers that write to the pipe that their own thread is writing to, and a SIGPIPE for each write that nobody
// can read.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static int ends[2];
static volatile long sent_by_handlers;
/* rand has a lock, which a handler may find taken by the thread that it interrupts while the reader wants it. */
static __thread unsigned seed = 1;
static volatile int broken;

static void on_alarm(int signal) {
    int before = errno;
    (void)signal;
    if (write(ends[1], "h", 1) == 1) sent_by_handlers++;
    errno = before;
}

static void on_broken(int signal) {
    (void)signal;
    broken++;
}

// How many of each letter come.
static void *read_all(void *counts) {
    unsigned char bytes[5000];
    long got;
    while ((got = read(ends[0], bytes, 1 + rand_r(&seed) % sizeof bytes)) != 0)
        for (long i = 0; i < got; i++) ((long *)counts)[bytes[i]]++;
    return NULL;
}

static void alarm_every(long us) {
    struct itimerval every = {{0, us}, {0, us}};
    setitimer(ITIMER_REAL, &every, NULL);
}

static void interrupted_writes(void) {
    static long counts[256];
    static char bytes[9000];
    long sent = 0;
    pthread_t reader;
    sigset_t alarm;
    sigemptyset(&alarm);
    sigaddset(&alarm, SIGALRM);
    if (pipe(ends)) exit(2);
    pthread_sigmask(SIG_BLOCK, &alarm, NULL);
    pthread_create(&reader, NULL, read_all, counts);
    pthread_sigmask(SIG_UNBLOCK, &alarm, NULL);
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    memset(bytes, 'm', sizeof bytes);
    alarm_every(150);
    for (int i = 0; i < 60000; i++) {
        long got = write(ends[1], bytes, 1 + rand_r(&seed) % (i % 50 ? 300 : 9000));
        if (got > 0) sent += got;
    }
    alarm_every(0);
    close(ends[1]);
    pthread_join(reader, NULL);
    printf("handlers': %s, others: %s\n", counts['h'] == sent_by_handlers && sent_by_handlers ? "all" : "not all",
           counts['m'] == sent ? "all" : "not all");
}

static void broken_pipes(void) {
    struct sigaction action = {.sa_handler = on_broken};
    sigaction(SIGPIPE, &action, NULL);
    int as_expected = 0;
    for (int i = 0; i < 200; i++) {
        if (pipe(ends)) exit(2);
        pid_t child = i % 2 ? fork() : 0;
        if (i % 2 && child == 0) {
            char byte;
            close(ends[1]);
            // Ends at once, or with something that it has read, or not.
            if (i % 4 == 1 && i % 3 && read(ends[0], &byte, 1) != 1) _exit(1);
            _exit(0);
        }
        close(ends[0]);
        if (i % 3 && i % 2 && write(ends[1], "x", 1) < 0 && errno != EPIPE) exit(2);
        if (i % 2) waitpid(child, NULL, 0);
        int before = broken;
        long result = write(ends[1], "yy", 2);
        as_expected += result == -1 && errno == EPIPE && broken == before + 1;
        close(ends[1]);
    }
    printf("broken: %d\n", as_expected);
}

int main(void) {
    interrupted_writes();
    broken_pipes();
    return 0;
}
