# SPDX-License-Identifier: Apache-2.0
"""Batches to weights: the train call, what feeds it, and what it leaves."""
