/* Three threads execute a program at once, one of which wins. That program executes another, which says whether
 * it is inside the sandbox, and how many of the zones' descriptors the first one had. */
#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { THREADS = 3 };
static pthread_barrier_t together;
static char *self;
/* The kernel copies the arguments before it ends the other threads, which so come as far as it does. */
static char large[100000];

static void *execute(void *unused)
{
	(void)unused;
	pthread_barrier_wait(&together);
	execv(self, (char *[]){self, "second", large, large, NULL});
	return NULL;
}

static int has_zones(void)
{
	char line[512];
	int found = 0;
	FILE *maps = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, maps))
		found |= strstr(line, "sbx-control") != NULL;
	fclose(maps);
	return found;
}

static int descriptors_of_zones(void)
{
	char path[300], target[300];
	int found = 0;
	DIR *all = opendir("/proc/self/fd");
	for (struct dirent *one; (one = readdir(all));) {
		snprintf(path, sizeof path, "/proc/self/fd/%s", one->d_name);
		ssize_t len = readlink(path, target, sizeof target - 1);
		target[len > 0 ? len : 0] = 0;
		found += strstr(target, "sbx-") != NULL;
	}
	closedir(all);
	return found;
}

int main(int count, char **arguments)
{
	self = arguments[0];
	if (count == 1) {
		pthread_t threads[THREADS];
		memset(large, 'x', sizeof large - 1);
		pthread_barrier_init(&together, NULL, THREADS);
		for (int i = 1; i < THREADS; i++)
			pthread_create(&threads[i], NULL, execute, NULL);
		execute(NULL);
		return 1;
	}
	if (!strcmp(arguments[1], "second")) {
		char said[64];
		snprintf(said, sizeof said, "inside %d, descriptors %d", has_zones(), descriptors_of_zones());
		execv(self, (char *[]){self, "third", said, NULL});
		return 1;
	}
	printf("%s, then inside %d\n", arguments[2], has_zones());
	return 0;
}
