/** A vendor's phone: reports its position, keeps what can't be sent, and shows the vendors nearby. */

import AsyncStorage from "@react-native-async-storage/async-storage";
import { CustomerClient, VendorClient } from "@venta/client";
import { StorageQueue } from "@venta/client/storage-queue";
import { useConnectionState, useVendors, VentaProvider } from "@venta/react";
import * as Location from "expo-location";
import { useEffect, useState } from "react";
import { AppState, FlatList, SafeAreaView, Text } from "react-native";

const URL = process.env.EXPO_PUBLIC_VENTA_URL ?? "http://127.0.0.1:8080";
const TOKEN = process.env.EXPO_PUBLIC_VENTA_TOKEN ?? null;
const customer = new CustomerClient(URL, { appState: AppState });

function useReporting() {
  const [waiting, setWaiting] = useState(0);
  useEffect(() => {
    if (TOKEN === null) return;
    const vendor = new VendorClient(URL, {
      getToken: () => TOKEN,
      queue: new StorageQueue(AsyncStorage),
      appState: AppState,
      onQueue: setWaiting,
    });
    let watching: Location.LocationSubscription | undefined;
    void (async () => {
      await vendor.connect();
      const { granted } = await Location.requestForegroundPermissionsAsync();
      if (!granted) return;
      watching = await Location.watchPositionAsync({ accuracy: Location.Accuracy.High, distanceInterval: 5 }, (position) => {
        void vendor.ping(position);
      });
    })();
    return () => {
      watching?.remove();
      void vendor.disconnect();
    };
  }, []);
  return waiting;
}

function Nearby() {
  const state = useConnectionState();
  const waiting = useReporting();
  const { vendors, fresh, error } = useVendors({ center: { lat: 52.2297, long: 21.0122 }, radius: 2000 });
  return (
    <SafeAreaView style={{ flex: 1, padding: 16 }}>
      <Text>{error?.message ?? `${vendors.length} vendors, ${state}, ${waiting} positions waiting`}</Text>
      <FlatList
        data={vendors}
        keyExtractor={(vendor) => vendor.vendorId}
        renderItem={({ item }) => <Text style={{ opacity: fresh ? 1 : 0.5 }}>{item.name}</Text>}
      />
    </SafeAreaView>
  );
}

export default function App() {
  return (
    <VentaProvider client={customer}>
      <Nearby />
    </VentaProvider>
  );
}
