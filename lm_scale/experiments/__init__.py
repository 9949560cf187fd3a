"""Runs started and watched from outside, in processes of their own."""
