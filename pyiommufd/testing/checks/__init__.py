"""What a test checks at its end: the kernel's log, refused DMA, leaks; and the devices it claims."""
