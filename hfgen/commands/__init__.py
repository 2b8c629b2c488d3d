"""Commands of `hfgen`, a module each: options without torch, and `main(argv)`, which Python may call too."""
