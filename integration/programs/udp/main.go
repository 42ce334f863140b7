// Datagrams of Go's own: a server, and clients that compare what they get.
package main

import (
	"bytes"
	"fmt"
	"math/rand"
	"net"
	"os"
	"sync"
	"time"
)

func fail(what ...any) {
	fmt.Fprintln(os.Stderr, what...)
	os.Exit(1)
}

// Send back what comes, until it is closed.
func serve(server net.PacketConn) {
	buffer := make([]byte, 70000)
	for {
		count, from, err := server.ReadFrom(buffer)
		if err != nil {
			return
		}
		if _, err := server.WriteTo(buffer[:count], from); err != nil {
			fail("server:", err)
		}
	}
}

func ask(to string, seed int64, done *sync.WaitGroup) {
	defer done.Done()
	client, err := net.Dial("udp", to)
	if err != nil {
		fail(err)
	}
	random := rand.New(rand.NewSource(seed))
	sent, got := make([]byte, 9000), make([]byte, 9001)
	for round := 0; round < 2000; round++ {
		count := random.Intn(len(sent))
		random.Read(sent[:count])
		client.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := client.Write(sent[:count]); err != nil {
			fail("client:", err)
		}
		read, err := client.Read(got)
		if err != nil || !bytes.Equal(got[:read], sent[:count]) {
			fail("client:", round, count, read, err)
		}
	}
	// Nothing else comes.
	client.SetDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := client.Read(got); !os.IsTimeout(err) {
		fail("more:", err)
	}
	client.Close()
}

func main() {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		server, err := net.ListenPacket("udp", at)
		if err != nil {
			fail(err)
		}
		for i := 0; i < 3; i++ {
			go serve(server)
		}
		var done sync.WaitGroup
		for i := 0; i < 4; i++ {
			done.Add(1)
			go ask(server.LocalAddr().String(), int64(i), &done)
		}
		done.Wait()
		server.Close()
	}
	fmt.Println("as sent")
}
