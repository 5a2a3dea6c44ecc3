/* Writers and readers of the pulse's C block run at full speed, without any GIL. `PULSE` is that
 * block, taken out of heartbeat.pyx. Prints how much was read. The exit status is 1 after a torn
 * pair, a step back in time, or a wait that no writer wrote. */
#include PULSE
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>

#ifndef ROUNDS
#define ROUNDS 300000
#endif
static const int64_t BASE = 1000000; /* stamp = step + BASE, wait = 7 ns */

static int failed;
static int64_t done;

static void *train(void *unused)
{
    for (int64_t step = 1; step <= ROUNDS; step++) {
        ws_beat_write(step, step + BASE, 1);
        for (volatile int pause = 0; pause < 10; pause++) {
            /* no training loop calls heartbeat() faster */
        }
    }
    ws_store(&done, 1);
    return unused;
}

static void *ask(void *unused)
{
    for (int64_t now = 1; !ws_load(&done); now++) {
        ws_turn(&ws_watch.asked, 0, now);
    }
    return unused;
}

static void *answer(void *unused)
{
    while (!ws_load(&done)) {
        int64_t asked = ws_load(&ws_watch.asked);
        if (asked && ws_turn(&ws_watch.asked, asked, 0)) {
            ws_store(&ws_watch.last, 7);
        }
    }
    return unused;
}

int main(void)
{
    pthread_t threads[3];
    int64_t reads = 0, before = 0;
    pthread_create(&threads[0], NULL, train, NULL);
    pthread_create(&threads[1], NULL, ask, NULL);
    pthread_create(&threads[2], NULL, answer, NULL);
    while (!ws_load(&done)) {
        ws_beat beat = ws_beat_read();
        int64_t last = ws_load(&ws_watch.last);
        bool torn = beat.stamp ? beat.stamp != beat.step + BASE : beat.step != 0;
        failed |= torn || beat.step < before || (last != -1 && last != 7);
        before = beat.step;
        reads++;
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
    }
    ws_beat beat = ws_beat_read();
    failed |= beat.step != ROUNDS || beat.stamp != ROUNDS + BASE;
    printf("%lld reads%s\n", (long long)reads, failed ? ", torn" : "");
    return failed;
}
