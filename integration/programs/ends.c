/* A thread ends in a signal handler, on top of an upcall that holds a lock: the process's first one, or, if the
 * argument is "other", another. Then an upcall of a thread that lives wants the lock; what it came to is printed. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sbx.h"

static sbx_t sbx;

static void end(int signal)
{
	(void)signal;
	syscall(SYS_exit, 0);
}

static void *hold(void *unused)
{
	uint64_t ms[1] = {60000};
	sbx_reply reply = {0};
	sbx_call(&sbx, sbx_find(&sbx, "ledger.hold"), ms, &reply);
	puts("it has not ended");
	_exit(1);
	return unused;
}

static void *take(void *holder)
{
	char text[256] = "";
	sbx_reply reply = {.buf = (uint8_t *)text, .cap = sizeof text - 1};
	usleep(200000);
	pthread_kill(*(pthread_t *)holder, SIGUSR1);
	usleep(500000);
	uint32_t status = sbx_call(&sbx, sbx_find(&sbx, "ledger.mutex_add"), NULL, &reply);
	printf("%u %s\n", status, text);
	fflush(stdout);
	_exit(0);
	return NULL;
}

int main(int count, char **arguments)
{
	pthread_t holder = pthread_self(), taker;
	if (sbx_current(&sbx)) return 2;
	signal(SIGUSR1, end);
	if (count > 1 && !strcmp(arguments[1], "other")) {
		pthread_create(&holder, NULL, hold, NULL);
		take(&holder);
	}
	pthread_create(&taker, NULL, take, &holder);
	hold(NULL);
	return 1;
}
