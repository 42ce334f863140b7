// An HTTP server of Go's own, and clients that compare what they get.
package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func read(response *http.Response, err error) []byte {
	check(err)
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	check(err)
	return got
}

func main() {
	large := make([]byte, 2000000)
	rand.Read(large)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/large" {
			w.Write(large)
			return
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "got %d", len(body))
	}))
	url := "http://" + listener.Addr().String()
	var clients sync.WaitGroup
	for i := 0; i < 8; i++ {
		clients.Add(1)
		go func() {
			defer clients.Done()
			for len := 1; len < 20000; len += 199 {
				body := bytes.NewReader(make([]byte, len))
				got := read(http.Post(url, "text/plain", body))
				if string(got) != fmt.Sprintf("got %d", len) {
					panic("not as sent")
				}
			}
			for j := 0; j < 5; j++ {
				if !bytes.Equal(read(http.Get(url+"/large")), large) {
					panic("another one")
				}
			}
		}()
	}
	clients.Wait()
	fmt.Println("as sent")
}
