/** What a Java machine does with signals: null checks without instructions, safepoints, stacks that end. */
public final class Work {
    private Work next;
    private int number = 1;

    /** Compiled after a while, with no null check but the fault. */
    private static int sum(Work first, int steps) {
        int sum = 0;
        for (Work at = first; steps > 0; steps--, at = at.next) sum += at.number;
        return sum;
    }

    private static int deep(int depth) {
        return deep(depth + 1) + 1;
    }

    private static int overflows() {
        try {
            return deep(0);
        } catch (StackOverflowError error) {
            return 1;
        }
    }

    private static String round() {
        Work chain = new Work();
        chain.next = new Work();
        int nulls = 0;
        long sum = 0;
        for (int i = 0; i < 20_000; i++) {
            try {
                sum += sum(chain, i % 100 == 0 ? 3 : 2);
            } catch (NullPointerException error) {
                nulls++;
            }
        }
        byte[][] kept = new byte[64][];
        for (int i = 0; i < 2_000; i++) kept[i % kept.length] = new byte[10_000];
        return nulls + " nulls, sum " + sum + ", " + overflows() + " overflow, " + kept[7].length;
    }

    public static void main(String[] words) throws Exception {
        long end = System.nanoTime() + Long.parseLong(words[0]) * 1_000_000_000L;
        java.util.Set<String> said = java.util.concurrent.ConcurrentHashMap.newKeySet();
        Thread[] threads = new Thread[4];
        for (int i = 0; i < threads.length; i++) {
            threads[i] = new Thread(() -> {
                do said.add(round()); while (System.nanoTime() < end);
            });
            threads[i].start();
        }
        for (Thread thread : threads) thread.join();
        said.stream().sorted().forEach(System.out::println);
    }
}
