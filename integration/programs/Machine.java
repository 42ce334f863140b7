import java.io.BufferedReader;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.MappedByteBuffer;
import java.nio.channels.AsynchronousFileChannel;
import java.nio.channels.ClosedByInterruptException;
import java.nio.channels.DatagramChannel;
import java.nio.channels.FileChannel;
import java.nio.channels.FileLock;
import java.nio.channels.Pipe;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.nio.file.StandardWatchEventKinds;
import java.nio.file.WatchService;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.LongStream;
import java.util.stream.Stream;
import java.util.zip.CRC32;

/** A little of all that a Java machine asks of the kernel. Prints the same each time. */
public final class Machine {
    private static final Path FOLDER = Path.of("machine").toAbsolutePath();

    private static void say(Object... words) {
        System.out.println(Stream.of(words).map(String::valueOf).collect(Collectors.joining(" ")));
    }

    private static void threads() throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(8);
        List<Future<Long>> sums = new ArrayList<>();
        for (int i = 0; i < 64; i++) {
            long from = i;
            sums.add(pool.submit(() -> LongStream.range(from, from + 200_000).filter(n -> n % 7 == 0).sum()));
        }
        long sum = 0;
        for (Future<Long> one : sums) sum += one.get();
        pool.shutdown();
        say("threads", sum, pool.awaitTermination(10, TimeUnit.SECONDS));
        AtomicInteger count = new AtomicInteger();
        Object lock = new Object();
        Thread[] many = new Thread[200];
        for (int i = 0; i < many.length; i++) {
            many[i] = new Thread(() -> {
                for (int n = 0; n < 50; n++) synchronized (lock) { count.incrementAndGet(); }
            });
            many[i].start();
        }
        for (Thread thread : many) thread.join();
        ScheduledExecutorService clock = Executors.newScheduledThreadPool(2);
        CountDownLatch ticks = new CountDownLatch(20);
        clock.scheduleAtFixedRate(ticks::countDown, 1, 5, TimeUnit.MILLISECONDS);
        say("counted", count, "ticked", ticks.await(10, TimeUnit.SECONDS));
        clock.shutdownNow();
        say("parallel", IntStream.range(0, 1_000_000).parallel().mapToLong(n -> n % 11).sum());
    }

    private static void files() throws Exception {
        Files.createDirectories(FOLDER.resolve("a/b/c"));
        CRC32 sum = new CRC32();
        for (int i = 0; i < 200; i++) {
            Files.writeString(FOLDER.resolve("a/b/c/" + i), "line\n".repeat(i));
        }
        try (Stream<Path> all = Files.walk(FOLDER)) {
            for (Path path : all.filter(Files::isRegularFile).sorted().toList()) sum.update(Files.readAllBytes(path));
        }
        say("written and read", sum.getValue());
        Path large = FOLDER.resolve("large");
        try (FileChannel channel = FileChannel.open(large, StandardOpenOption.CREATE, StandardOpenOption.READ,
                StandardOpenOption.WRITE)) {
            MappedByteBuffer map = channel.map(FileChannel.MapMode.READ_WRITE, 0, 8 << 20);
            for (int at = 0; at < map.capacity(); at += 4096) map.put(at, (byte) (at >> 12));
            map.force();
            try (FileLock lock = channel.lock()) {
                say("locked", lock.isValid());
            }
            Path copy = FOLDER.resolve("copy");
            try (FileChannel to = FileChannel.open(copy, StandardOpenOption.CREATE, StandardOpenOption.WRITE)) {
                say("transferred", channel.transferTo(0, channel.size(), to));
            }
            say("differs at", Files.mismatch(large, copy));
        }
        try (AsynchronousFileChannel channel = AsynchronousFileChannel.open(large, StandardOpenOption.READ)) {
            say("read later", channel.read(ByteBuffer.allocate(4096), 4096 * 3).get());
        }
        Files.setPosixFilePermissions(large, PosixFilePermissions.fromString("r-x-w--w-"));
        say(PosixFilePermissions.toString(Files.getPosixFilePermissions(large)), Files.size(large));
        Files.createSymbolicLink(FOLDER.resolve("link"), Path.of("a/b"));
        say("link", Files.readSymbolicLink(FOLDER.resolve("link")), Files.isDirectory(FOLDER.resolve("link/c")));
        try {
            Files.delete(FOLDER.resolve("none"));
        } catch (NoSuchFileException none) {
            say("not there", FOLDER.relativize(Path.of(none.getFile())));
        }
        try (WatchService watch = FOLDER.getFileSystem().newWatchService()) {
            FOLDER.resolve("a").register(watch, StandardWatchEventKinds.ENTRY_CREATE);
            Files.createFile(FOLDER.resolve("a/new"));
            say("watched", watch.poll(10, TimeUnit.SECONDS).pollEvents().get(0).context());
        }
    }

    /** Answers each line in capitals until there is none. */
    private static void serve(Socket socket) {
        try (socket; BufferedReader in = new BufferedReader(
                new java.io.InputStreamReader(socket.getInputStream(), StandardCharsets.UTF_8))) {
            for (String line; (line = in.readLine()) != null;) {
                socket.getOutputStream().write((line.toUpperCase() + "\n").getBytes(StandardCharsets.UTF_8));
            }
        } catch (java.io.IOException error) {
            say("server", error);
        }
    }

    private static void sockets() throws Exception {
        ServerSocket server = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
        ExecutorService servers = Executors.newCachedThreadPool();
        Thread accepts = new Thread(() -> {
            try {
                while (true) {
                    Socket socket = server.accept();
                    servers.submit(() -> serve(socket));
                }
            } catch (java.io.IOException closed) {
                say("closed");
            }
        });
        accepts.start();
        List<CompletableFuture<Integer>> clients = new ArrayList<>();
        for (int i = 0; i < 8; i++) clients.add(CompletableFuture.supplyAsync(() -> ask(server.getLocalPort())));
        int right = 0;
        for (CompletableFuture<Integer> client : clients) right += client.get();
        say("answered", right);
        try (Socket quiet = new Socket(InetAddress.getLoopbackAddress(), server.getLocalPort())) {
            quiet.setSoTimeout(30);
            quiet.getInputStream().read();
        } catch (SocketTimeoutException late) {
            say("nothing came");
        }
        server.close();
        accepts.join();
        servers.shutdown();
        say("served", servers.awaitTermination(10, TimeUnit.SECONDS));
    }

    private static int ask(int port) {
        int right = 0;
        try (Socket socket = new Socket(InetAddress.getLoopbackAddress(), port)) {
            BufferedReader in = new BufferedReader(new java.io.InputStreamReader(socket.getInputStream()));
            OutputStream out = socket.getOutputStream();
            for (int i = 0; i < 200; i++) {
                out.write(("line " + i + "\n").getBytes());
                if (in.readLine().equals("LINE " + i)) right++;
            }
        } catch (java.io.IOException error) {
            say("client", error);
        }
        return right;
    }

    /** Many connections in one thread, by epoll. */
    private static void selected(ServerSocketChannel server, SocketChannel[] clients) throws Exception {
        Selector selector = Selector.open();
        server.configureBlocking(false).register(selector, SelectionKey.OP_ACCEPT);
        for (SocketChannel client : clients) client.write(ByteBuffer.wrap("0123456789".repeat(100).getBytes()));
        long bytes = 0;
        int accepted = 0;
        ByteBuffer buffer = ByteBuffer.allocateDirect(4096);
        while (bytes < clients.length * 1000L) {
            selector.select(10_000);
            for (SelectionKey key : selector.selectedKeys()) {
                if (key.isAcceptable()) {
                    SocketChannel channel = server.accept();
                    channel.configureBlocking(false).register(selector, SelectionKey.OP_READ);
                    accepted++;
                } else {
                    bytes += ((SocketChannel) key.channel()).read(buffer.clear());
                }
            }
            selector.selectedKeys().clear();
        }
        say("selected", accepted, bytes);
        for (SelectionKey key : selector.keys()) key.channel().close();
        for (SocketChannel client : clients) client.close();
        selector.close();
    }

    private static void channels() throws Exception {
        ServerSocketChannel tcp = ServerSocketChannel.open().bind(new InetSocketAddress("127.0.0.1", 0));
        SocketChannel[] clients = new SocketChannel[40];
        for (int i = 0; i < clients.length; i++) clients[i] = SocketChannel.open(tcp.getLocalAddress());
        selected(tcp, clients);
        UnixDomainSocketAddress place = UnixDomainSocketAddress.of(Path.of("machine/s"));
        ServerSocketChannel unix = ServerSocketChannel.open(StandardProtocolFamily.UNIX).bind(place);
        clients = new SocketChannel[10];
        for (int i = 0; i < clients.length; i++) clients[i] = SocketChannel.open(place);
        selected(unix, clients);
        try (DatagramChannel one = DatagramChannel.open().bind(new InetSocketAddress("127.0.0.1", 0));
                DatagramChannel other = DatagramChannel.open()) {
            other.send(ByteBuffer.wrap("datagram".getBytes()), one.getLocalAddress());
            ByteBuffer got = ByteBuffer.allocate(100);
            one.receive(got);
            say("datagram", got.position());
        }
        Pipe pipe = Pipe.open();
        Thread reads = new Thread(() -> {
            try {
                pipe.source().read(ByteBuffer.allocate(1));
            } catch (ClosedByInterruptException interrupted) {
                say("interrupted", Thread.currentThread().isInterrupted());
            } catch (java.io.IOException error) {
                say("pipe", error);
            }
        });
        reads.start();
        while (reads.getState() != Thread.State.RUNNABLE) Thread.sleep(1);
        Thread.sleep(20);
        reads.interrupt();
        reads.join();
    }

    private static void children() throws Exception {
        Process child = new ProcessBuilder("/bin/sh", "-c", "echo $WORD; cat; echo bad >&2; exit 7")
                .redirectErrorStream(true).directory(FOLDER.toFile()).start();
        child.getOutputStream().write("to a child\n".getBytes());
        child.getOutputStream().close();
        say("child", new String(child.getInputStream().readAllBytes()).replace('\n', ' '), child.waitFor());
        ProcessBuilder lists = new ProcessBuilder("/bin/ls", "a/b/c").directory(FOLDER.toFile());
        ProcessBuilder counts = new ProcessBuilder("/usr/bin/wc", "-l");
        List<Process> line = ProcessBuilder.startPipeline(List.of(lists, counts));
        say("pipeline", new String(line.get(1).getInputStream().readAllBytes()).trim());
        for (Process one : line) one.waitFor();
        List<Process> many = new ArrayList<>();
        for (int i = 0; i < 12; i++) many.add(new ProcessBuilder("/bin/sh", "-c", "exit " + i).start());
        int sum = 0;
        for (Process one : many) sum += one.waitFor();
        say("children", sum);
        Process sleeps = new ProcessBuilder("/bin/sleep", "60").start();
        sleeps.destroy();
        say("destroyed", sleeps.waitFor(), sleeps.toHandle().isAlive());
        try {
            new ProcessBuilder("/no/such/program").start();
        } catch (java.io.IOException error) {
            say(error.getMessage());
        }
    }

    private static void garbage() {
        byte[][] kept = new byte[512][];
        long bytes = 0;
        for (int i = 0; i < 60_000; i++) {
            kept[i % kept.length] = new byte[10_000 + i % 5_000];
            bytes += kept[i % kept.length].length;
        }
        System.gc();
        try {
            byte[][] all = new byte[1 << 20][];
            for (int i = 0; i < all.length; i++) all[i] = new byte[1 << 20];
        } catch (OutOfMemoryError full) {
            say("full", full.getMessage());
        }
        say("garbage", bytes);
    }

    private static int deep(int depth) {
        return deep(depth + 1) + 1;
    }

    /** What it does by signals. */
    private static void faults() throws Exception {
        int nulls = 0;
        int[][] rows = {{1}, null};
        for (int i = 0; i < 200_000; i++) {
            try {
                nulls -= rows[i % 100 == 0 ? 1 : 0][0] - 1;
            } catch (NullPointerException error) {
                nulls++;
            }
        }
        try {
            deep(0);
        } catch (StackOverflowError error) {
            say("nulls", nulls, "and an overflow");
        }
        MappedByteBuffer map;
        Path path = FOLDER.resolve("short");
        Files.write(path, new byte[8192]);
        try (FileChannel channel = FileChannel.open(path, StandardOpenOption.READ, StandardOpenOption.WRITE)) {
            map = channel.map(FileChannel.MapMode.READ_ONLY, 0, 8192);
            channel.truncate(0);
        }
        try {
            say("read", map.get(5000));
        } catch (InternalError | IndexOutOfBoundsException error) {
            say("a page that is gone");
        }
    }

    public static void main(String[] words) throws Exception {
        threads();
        files();
        sockets();
        channels();
        children();
        garbage();
        faults();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> say("the end")));
        System.exit(5);
    }
}
