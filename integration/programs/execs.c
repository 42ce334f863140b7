/* Forks children that execute a program, while another child posts urgent events to every participant; prints how many
 * of the children were killed. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sbx.h"

static void post_on(void)
{
	sbx_t sbx;
	if (sbx_current(&sbx)) _exit(2);
	sbx_handle post = sbx_find(&sbx, "libos.post");
	uint64_t words[7] = {SBX_TO_ALL | SBX_URGENT, 0, sbx_find(&sbx, "hello.add"), 1, 1, 0, 0};
	for (;; usleep(300)) {
		sbx_reply reply = {0};
		sbx_call(&sbx, post, words, &reply);
	}
}

int main(int count, char **arguments)
{
	int killed = 0, failed = 0, times = count > 1 ? atoi(arguments[1]) : 100;
	pid_t poster = fork();
	if (!poster) post_on();
	for (int i = 0; i < times; i++) {
		int status;
		pid_t child = fork();
		if (!child) {
			execl("/bin/true", "true", NULL);
			_exit(99);
		}
		waitpid(child, &status, 0);
		killed += WIFSIGNALED(status);
		failed += WIFEXITED(status) && WEXITSTATUS(status);
	}
	kill(poster, SIGKILL);
	printf("killed %d, failed %d\n", killed, failed);
	return 0;
}
