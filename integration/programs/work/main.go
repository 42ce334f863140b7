// A static Go program that hashes in goroutines, for so many seconds.
package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

func digest() string {
	var sums [8][sha256.Size]byte
	var all sync.WaitGroup
	for i := range sums {
		all.Add(1)
		go func(i int) {
			defer all.Done()
			sums[i] = sha256.Sum256(bytes.Repeat([]byte{byte(i)}, 1<<20))
		}(i)
	}
	all.Wait()
	hash := sha256.New()
	for _, sum := range sums {
		hash.Write(sum[:])
	}
	return fmt.Sprintf("%x", hash.Sum(nil))
}

func main() {
	seconds, _ := strconv.Atoi(os.Args[1])
	end := time.Now().Add(time.Duration(seconds) * time.Second)
	first := digest()
	for time.Now().Before(end) {
		if digest() != first {
			fmt.Println("differs")
			os.Exit(1)
		}
	}
	fmt.Println(first)
}
