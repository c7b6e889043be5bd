"""The commands of ``trainkit checkpoint``, a file each: flags in, text or JSON out."""
