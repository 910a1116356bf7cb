"""RETOUCH: volumes of retinal OCT."""
